//! Promise: what a deployment is going to do is known and told before anything starts, all that is wrong
//! with its files at once, and no secret is shown.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use support::{World, finish, write};

const PROJECT: &str = r##"
project = "web"
[rollout]
canary = { count = 1 }
batch = 1
max_failures = "50%"
[[variables]]
name = "OctopusBypassDeploymentMutex"
value = true
scope = { role = "web" }
[[variables]]
name = "Db.Password"
value_env = "DEPLOY_PASSWORD"
sensitive = true
scope = { environment = "Test" }
[[variables]]
name = "Db.Url"
value = "pg://web:#{Db.Password}@db"
scope = { environment = "Test" }
[[variables]]
name = "Motd"
value_file = "motd"
[[packages]]
id = "site"
version = "#{Octopus.Release.Number}"
file = "site-#{Octopus.Release.Number}.tgz"
[[steps]]
name = "Healthy"
action = "health-check"
[[steps]]
name = "Deploy"
file = "deploy.sh"
packages = ["site"]
inputs = { MOTD = "#{Motd}!" }
timeout = "10m"
[[steps]]
name = "Warm up"
start = "with-previous"
roles = ["web"]
run = "true"
"##;

/// A folder with a project, its script and its machines; the command to deploy it.
fn world() -> World {
    let world = World::new();
    write(&world.path("web.toml"), PROJECT);
    write(&world.path("deploy.sh"), "echo deploying\n");
    write(&world.path("motd"), "hello\n");
    let add = |name: &str, role: &str| {
        let targets = world.path("targets.toml");
        let mut command = world.baton();
        command.args(["target", "add", name, &format!("{name}:10950"), "--targets"]).arg(&targets);
        command.args(["--fingerprint", &"ab".repeat(32), "--environment", "Test", "-r", role]);
        let (code, _, error) = finish(&mut command);
        assert_eq!(code, 0, "{error}");
    };
    add("web-1", "web");
    add("web-2", "web");
    add("db-1", "db");
    world
}

fn deploy(world: &World, more: &[&str], password: Option<&str>) -> (i32, String, String) {
    let mut command = world.baton();
    command.arg("deploy").arg(world.path("web.toml")).args(["--environment", "Test", "--dry-run"]);
    command.arg("--targets").arg(world.path("targets.toml")).args(more);
    command.env_remove("DEPLOY_PASSWORD");
    command.envs(password.map(|password| ("DEPLOY_PASSWORD", password)));
    finish(&mut command)
}

#[test]
fn a_dry_run_tells_steps_targets_batches_isolation_and_no_secret() {
    let world = world();
    let (code, out, error) = deploy(&world, &["--release", "1.2"], Some("hunter2"));
    assert_eq!(code, 0, "{error}");
    let (code, json, error) = deploy(&world, &["--release", "1.2", "--json"], Some("hunter2"));
    assert_eq!(code, 0, "{error}");
    assert!(!format!("{out}{json}").contains("hunter2"), "{out}{json}");
    for expected in [
        "web 1.2 to Test",
        "tag web/Test",
        "at most 1 of 3 targets",
        "stage 2: 2 steps side by side, 10 at once",
        "batch 1 (canary): web-1\n  batch 2: web-2\n  batch 3: db-1\n",
        "      web-1  bypass, bash, at most 10m\n",
        "      db-1   exclusive, bash, at most 10m\n",
        "web-1  observer, takes no turn\n",
        "VAR_DB_PASSWORD                   ********\n",
        "VAR_DB_URL                        ********\n",
        "MOTD                              hello!\n",
        "VAR_OCTOPUSBYPASSDEPLOYMENTMUTEX  True on web-1, web-2\n",
    ] {
        assert!(out.contains(expected), "{expected:?} in:\n{out}");
    }
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    let job = &plan["stages"][1]["steps"][0]["jobs"][0];
    assert_eq!(job["target"], "web-1");
    assert_eq!(job["isolation"]["kind"], "bypass");
    assert_eq!(job["script"]["body"], "echo deploying\n");
    assert_eq!(job["environment"]["VAR_DB_PASSWORD"], serde_json::json!({"sensitive": true}));
    assert_eq!(job["run_time_limit_seconds"], 600.0);
}

#[test]
fn what_is_missing_for_this_deployment_is_told_at_once() {
    let world = world();
    let (code, _, error) = deploy(&world, &["--release", "1.2"], None);
    assert_eq!(code, 2);
    assert!(error.contains("variables[1].value_env: environment variable DEPLOY_PASSWORD is not"));
    let (code, _, error) = deploy(&world, &[], Some("x"));
    assert!(code == 2 && error.contains("hint: give --release"), "{error}");
    let (code, _, error) = deploy(&world, &["--release", "1", "--only", "wbe"], Some("x"));
    assert!(code == 2 && error.contains("hint: did you mean \"web\"?"), "{error}");
}

#[test]
fn a_check_finds_all_that_is_wrong_and_reads_no_secret() {
    let world = world();
    let check = |more: &[&str]| {
        let mut command = world.baton();
        command.args(["deploy", "check"]).arg(world.path("web.toml")).args(more);
        finish(command.env_remove("DEPLOY_PASSWORD"))
    };
    let (code, out, error) = check(&[]);
    assert!(code == 0 && out.contains("project web is right"), "{error}");
    std::fs::remove_file(world.path("deploy.sh")).unwrap();
    let (code, _, error) = check(&[]);
    assert!(code == 1 && error.contains("line 32, steps[1].file: file deploy.sh: "), "{error}");
    write(
        &world.path("web.toml"),
        &PROJECT.replace("batch = 1", "bacth = 1").replace("role =", "rol ="),
    );
    let (code, out, _) = check(&["--json"]);
    let lines: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<_> = lines.iter().map(|line| (line["line"].as_u64(), &line["key"])).collect();
    assert_eq!(code, 1);
    assert_eq!(
        keys,
        [(Some(5), &"rollout.bacth".into()), (Some(10), &"variables[0].scope.rol".into())]
    );
    assert_eq!(lines[0]["hint"], "did you mean \"batch\"?");
}

#[test]
fn targets_are_added_and_removed_and_what_people_wrote_stays() {
    let world = world();
    let path = world.path("targets.toml");
    let before = format!("# ours\n{}", std::fs::read_to_string(&path).unwrap());
    write(&path, &before);
    let target = |words: &[&str]| {
        let mut command = world.baton();
        finish(command.arg("target").args(words).arg("--targets").arg(&path))
    };
    let fingerprint = "cd".repeat(32);
    let add = ["add", "w", "w:1", "--fingerprint", &fingerprint, "--kind", "worker"];
    assert_eq!(target(&add).0, 0);
    let added = std::fs::read_to_string(&path).unwrap();
    assert!(added.starts_with(&before), "{added}");
    let (code, out, _) = target(&["list"]);
    assert!(code == 0 && out.contains("w      w:1          worker"), "{out}");
    let (code, _, error) = target(&["add", "w", "w:2", "--fingerprint", &fingerprint]);
    assert!(code == 2 && error.contains("hint: `baton target remove` it first"), "{error}");
    assert_eq!(target(&["remove", "w"]).0, 0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    let (code, _, error) = target(&["remove", "w"]);
    assert!(code == 2 && error.contains("`baton target list` shows"), "{error}");
}

#[test]
fn a_script_reads_its_variables_with_a_command() {
    let world = World::new();
    let get = |name: &str| {
        let mut command = world.baton();
        finish(command.args(["var", "get", name]).env("VAR_WEB_PORT", "80 81"))
    };
    assert_eq!(get("Web.Port"), (0, "80 81\n".to_owned(), String::new()));
    let (code, out, error) = get("Web.Prt");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(error.contains("VAR_WEB_PRT is not in the environment"), "{error}");
}
