//! Plans, from the texts of both files.

use std::time::Duration;

use super::*;
use crate::deploy::plan::{Isolation, PackageSource};

/// Machines as they are in most of these tests: three of role web, one of role db, a worker; another environment.
const TARGETS: &str = "
[targets.web-1]
address = 'web-1:10950'
environments = ['Test', 'Live']
roles = ['web']
[targets.web-2]
address = 'web-2:10950'
environments = ['Test']
roles = ['web', 'iis']
limits = { at_most = 4, timeout = '5m' }
[targets.web-10]
address = 'web-10:10950'
environments = ['Test']
roles = ['web']
[targets.db-1]
address = 'db-1:10950'
environments = ['Test']
roles = ['db']
[targets.worker]
address = 'worker:10950'
kind = 'worker'
environments = ['Test']
roles = ['tools']
[targets.acme-1]
address = 'acme-1:10950'
environments = ['Test']
roles = ['web']
tenants = ['acme']
";

fn targets() -> Targets {
    let fingerprint = format!("\nfingerprint = '{}'\naddress", "ab".repeat(32));
    Targets::parse("targets.toml", &TARGETS.replace("\naddress", &fingerprint)).unwrap()
}

fn request() -> Request {
    Request { environment: "Test".to_owned(), ..Request::default() }
}

fn project(text: &str) -> Project {
    Project::parse("p/deploy.toml", &format!("project = 'web'\n{text}"))
        .unwrap_or_else(|problems| panic!("{problems}"))
}

fn planned(text: &str) -> Plan {
    plan(&project(text), &targets(), &request()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn refused(text: &str, request: &Request) -> Vec<String> {
    let problems = plan(&project(text), &targets(), request).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

fn variable(name: &str, value: &str, scope: &str) -> String {
    format!("[[variables]]\nname = '{name}'\nvalue = '{value}'\nscope = {{ {scope} }}\n")
}

fn step(name: &str, more: &str) -> String {
    format!("[[steps]]\nname = '{name}'\nrun = 'true'\n{more}\n")
}

/// The targets of each wave.
fn waves(plan: &Plan) -> Vec<&[String]> {
    plan.waves.iter().map(|wave| wave.targets.as_slice()).collect()
}

/// The targets of a step.
fn targets_of(step: &PlannedStep) -> Vec<&str> {
    step.jobs.iter().map(|job| job.target.as_str()).collect()
}

/// The isolation of a step on a target.
fn isolation_of(plan: &Plan, step: &str, target: &str) -> Isolation {
    let step = plan.steps().find(|planned| planned.name == step).unwrap();
    step.jobs.iter().find(|job| job.target == target).unwrap().isolation
}

#[test]
fn steps_run_on_the_targets_with_their_roles_in_the_order_of_the_file() {
    let plan = planned(&[step("All", ""), step("Web", "roles = ['web', 'iis']")].concat());
    let all: Vec<_> = plan.steps().map(targets_of).collect();
    assert_eq!(all[0], ["web-1", "web-2", "web-10", "db-1", "worker"]);
    assert_eq!(all[1], ["web-1", "web-2", "web-10"]);
    let acme = Request { tenant: Some("acme".to_owned()), ..request() };
    let plan = super::plan(&project(&step("Web", "roles = ['web']")), &targets(), &acme).unwrap();
    assert_eq!(targets_of(&plan.stages[0].steps[0]), ["web-1", "web-2", "web-10", "acme-1"]);
    assert_eq!(plan.concurrency_tag, "acme/web/Test");
}

#[test]
fn canaries_go_first_and_the_others_in_batches() {
    let rollout = "[rollout]\ncanary = { targets = ['web-10', 'acme-1'] }\nbatch = 2\n";
    let steps = [step("All", ""), step("Db", "roles = ['db']")].concat();
    let plan = planned(&format!("{rollout}{steps}"));
    let names: Vec<_> = plan.targets.iter().map(|t| (t.name.as_str(), t.is_canary)).collect();
    assert_eq!(names[0], ("web-10", true));
    assert!(names[1..].iter().all(|(_, is_canary)| !is_canary));
    assert_eq!(waves(&plan), [&["web-10"][..], &["web-1", "web-2"], &["db-1", "worker"]]);
    assert_eq!(targets_of(&plan.stages[1].steps[0]), ["db-1"]);
    let percent = "[rollout]\ncanary = { count = 2 }\nbatch = '40%'\nmax_failures = '50%'\n";
    let plan = planned(&format!("{percent}{}", step("All", "")));
    assert_eq!(waves(&plan), [&["web-1", "web-2"][..], &["web-10", "db-1"], &["worker"]]);
    assert_eq!(plan.max_failures, 2);
}

#[test]
fn steps_that_start_with_the_one_before_are_one_stage() {
    let with = "start = 'with-previous'";
    let steps = [step("A", ""), step("B", with), step("C", ""), step("D", with), step("E", with)];
    let plan = planned(&steps.concat());
    let stages: Vec<Vec<_>> = plan
        .stages
        .iter()
        .map(|stage| stage.steps.iter().map(|step| (step.number, step.name.as_str())).collect())
        .collect();
    assert_eq!(stages, [vec![(1, "A"), (2, "B")], vec![(3, "C"), (4, "D"), (5, "E")]]);
}

#[test]
fn bypass_holds_where_the_variable_is_in_scope() {
    let steps = [step("A", ""), step("B", "isolation = 'exclusive'")].concat();
    let check = "[[steps]]\nname = 'C'\naction = 'health-check'\n";
    let bypass = |scope: &str| variable(special::BYPASS, "true", scope);
    let no_limit = Isolation::Bypass { at_most: None };
    let four = Isolation::Bypass { at_most: NonZeroU32::new(4) };
    let exclusive = Isolation::Exclusive;
    for (variables, web_1, web_2, worker) in [
        (String::new(), exclusive, exclusive, no_limit),
        (bypass(""), no_limit, four, no_limit),
        (bypass("environment = 'Test'"), no_limit, four, no_limit),
        (bypass("environment = 'Live'"), exclusive, exclusive, no_limit),
        (bypass("role = 'iis'"), exclusive, four, no_limit),
        (bypass("target = 'web-1'"), no_limit, exclusive, no_limit),
        (bypass("step = 'B'"), exclusive, exclusive, no_limit),
        (variable(special::BYPASS, "FALSE", ""), exclusive, exclusive, exclusive),
        (
            bypass("") + &variable(special::BYPASS, "False", "role = 'iis'"),
            no_limit,
            exclusive,
            no_limit,
        ),
    ] {
        let plan = planned(&format!("{steps}{check}{variables}"));
        for (target, expected) in [("web-1", web_1), ("web-2", web_2), ("worker", worker)] {
            assert_eq!(isolation_of(&plan, "A", target), expected, "{target}: {variables}");
            // What a step says itself counts, and a health check takes no turn.
            assert_eq!(isolation_of(&plan, "B", target), exclusive, "{target}: {variables}");
            assert_eq!(isolation_of(&plan, "C", target), Isolation::Observer);
        }
    }
}

#[test]
fn a_project_may_have_a_machine_from_its_first_step_to_its_last() {
    let steps = [step("A", ""), step("B", "isolation = 'observer'")].concat();
    let plan = planned(&format!("isolation = 'deployment'\n{steps}"));
    assert_eq!(isolation_of(&plan, "A", "web-1"), Isolation::Deployment);
    assert_eq!(isolation_of(&plan, "A", "worker"), Isolation::Bypass { at_most: None });
    assert_eq!(isolation_of(&plan, "B", "web-1"), Isolation::Observer);
}

#[test]
fn limits_are_the_step_s_else_the_project_s_and_the_smallest_in_scope() {
    let general = |value: &str, scope: &str| variable(special::ACTION_PARALLELISM, value, scope);
    let of_step =
        |value: &str, scope: &str| variable("Octopus.Action[A].MaxParallelism", value, scope);
    let steps = |own: &str| [step("A", own), step("B", "start = 'with-previous'")].concat();
    for (variables, own, a, b, stage) in [
        (String::new(), "", 10, 10, 10),
        (general("3", ""), "", 3, 3, 3),
        (general("3", ""), "max_parallelism = 2", 2, 3, 3),
        (general("3", "") + &of_step("7", ""), "max_parallelism = 2", 7, 3, 3),
        (general("3", "role = 'db'"), "", 3, 3, 3),
        (general("3", "step = 'B'"), "", 10, 3, 3),
        (general("3", "environment = 'Live'"), "", 10, 10, 10),
        (of_step("5", "") + &of_step("4", "target = 'web-2'"), "", 4, 10, 10),
        (general("20", "") + &general("30", "environment = 'Test'"), "", 30, 30, 30),
    ] {
        let plan = planned(&format!("{}{variables}", steps(own)));
        let limits: Vec<_> = plan.steps().map(|step| step.parallelism.get()).collect();
        let found = (limits[0], limits[1], plan.stages[0].parallelism.get());
        assert_eq!(found, (a, b, stage), "{variables}{own}");
    }
    let check = "[[steps]]\nname = 'C'\naction = 'health-check'\n";
    let plan = planned(&format!("{check}{}", general("3", "")));
    assert_eq!(plan.stages[0].steps[0].parallelism.get(), 10);
}

#[test]
fn packages_go_to_the_targets_whose_steps_use_them() {
    let text = "
[[packages]]
id = 'web'
version = '#{Octopus.Release.Number}'
file = 'dist/#{Octopus.Machine.Name}.tgz'
[[packages]]
id = 'tools'
version = '1'
directory = '/opt/tools'
[[packages]]
id = 'unused'
version = '1'
file = 'x'
[[steps]]
name = 'A'
run = 'true'
packages = ['web', 'tools']
roles = ['iis']
[[steps]]
name = 'B'
action = 'package'
package = 'web'
roles = ['web']
";
    let limit = variable(special::ACQUIRE_PARALLELISM, "2", "role = 'db'");
    let request = Request { release: Some("1.2".to_owned()), ..request() };
    let plan = plan(&project(&format!("{text}{limit}")), &targets(), &request).unwrap();
    let all = &plan.acquisitions.packages;
    let found: Vec<_> = all.iter().map(|a| (a.target.as_str(), a.package.as_str())).collect();
    let expected = [("web-1", "web"), ("web-2", "web"), ("web-2", "tools"), ("web-10", "web")];
    assert_eq!(found, expected);
    assert_eq!(all[1].source, PackageSource::File("p/dist/web-2.tgz".into()));
    assert_eq!(all[2].source, PackageSource::Directory("/opt/tools".into()));
    assert_eq!(plan.acquisitions.parallelism.get(), 2);
    let switch = plan.steps().nth(1).unwrap().jobs.first().unwrap();
    assert_eq!(switch.package_version.as_deref(), Some("1.2"));
    assert!(plan.remarks.iter().any(|remark| remark == "package unused: no step uses it"));
    let without = refused(text, &self::request());
    assert!(without.iter().all(|told| told.contains("has no value without a release")));
}

#[test]
fn a_job_has_its_variables_inputs_arguments_labels_and_limits() {
    let variables = [
        variable("Port", "80", ""),
        variable("Port", "81", "target = 'web-2'"),
        variable("Name", "#{Octopus.Machine.Name}:#{Port}", ""),
    ];
    let more = "inputs = { LISTEN = '#{Name}' }\narguments = ['--port', '#{Port}']\n\
                roles = ['web']\ntimeout = '10m'\nqueue_timeout = '1h'";
    let plan = planned(&(variables.concat() + &step("A", more)));
    let job = |target: &str| plan.steps().flat_map(|step| &step.jobs).find(|j| j.target == target);
    let (one, two) = (job("web-1").unwrap(), job("web-2").unwrap());
    let value = |job: &Job, name: &str| job.environment[name].expose().to_owned();
    assert_eq!(value(one, "LISTEN"), "web-1:80");
    assert_eq!(value(two, "LISTEN"), "web-2:81");
    assert_eq!(value(two, "VAR_NAME"), "web-2:81");
    assert_eq!(value(two, "VAR_OCTOPUS_STEP_NAME"), "A");
    assert_eq!(two.arguments[1].expose(), "81");
    assert_eq!(one.run_time_limit, Some(Duration::from_mins(10)));
    assert_eq!(two.run_time_limit, Some(Duration::from_mins(5)));
    assert_eq!(two.queue_time_limit, Some(Duration::from_hours(1)));
    let labels: Vec<_> = two.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["environment=Test", "project=web", "step=A", "target=web-2"]);
}

#[test]
fn a_target_gets_the_script_for_its_interpreter() {
    let step = "[[steps]]\nname = 'A'\nscripts = { bash = { run = 'b' }, pwsh = { run = 'p' } }\n";
    let with = |interpreters: &str| {
        let text = format!(
            "[targets.a]\naddress = 'a:1'\nfingerprint = '{}'\nenvironments = ['Test']\n\
             interpreters = {interpreters}\n",
            "ab".repeat(32)
        );
        let targets = Targets::parse("targets.toml", &text).unwrap();
        let plan = plan(&project(step), &targets, &request())?;
        let job = plan.steps().flat_map(|step| &step.jobs).next();
        Ok::<_, Problems>(job.and_then(|job| job.script.clone()).unwrap().body)
    };
    assert_eq!(with("[]").unwrap(), "b");
    assert_eq!(with("['pwsh', 'bash']").unwrap(), "p");
    assert_eq!(with("['sh', 'bash']").unwrap(), "b");
    let problems = with("['sh']").unwrap_err().to_string();
    assert!(
        problems.contains("steps[0]: has no script for sh, which target a needs"),
        "{problems}"
    );
}

#[test]
fn a_bad_value_stops_everything_before_it_starts() {
    let text = [
        variable("Maybe", "perhaps", ""),
        variable(special::BYPASS, "#{Maybe}", "role = 'db'"),
        variable(special::ACQUIRE_PARALLELISM, "#{Zero}", ""),
        variable("Zero", "0", ""),
        step("A", ""),
    ];
    let told = refused(&text.concat(), &request());
    let bypass = "OctopusBypassDeploymentMutex is \"perhaps\" for step \"A\", target db-1, \
                  environment Test, but must be True or False";
    assert!(told.iter().any(|one| one.contains(bypass)), "{told:#?}");
    assert!(told.iter().any(|one| one.contains("Octopus.Acquire.MaxParallelism is \"0\"")));
    // Where it is not in scope it does no harm: nothing runs on db-1.
    let web = [
        variable("Maybe", "perhaps", ""),
        variable(special::BYPASS, "#{Maybe}", "role = 'db'"),
        step("A", "roles = ['web']"),
    ];
    assert_eq!(isolation_of(&planned(&web.concat()), "A", "web-1"), Isolation::Exclusive);
}

#[test]
fn a_tie_that_only_a_target_shows_is_told_before_anything_starts() {
    let text = [
        variable("Port", "80", "role = 'web'"),
        variable("Port", "81", "role = 'iis'"),
        step("A", ""),
    ];
    let told = refused(&text.concat(), &request());
    let expected = "\"Port\" has two values that are equally specific: for role web (line 2), and for \
                    role iis (line 6)";
    assert!(told.iter().all(|one| one.contains(expected)), "{told:#?}");
}

#[test]
fn what_names_nothing_is_refused_with_a_near_name() {
    let steps = step("A", "roles = ['web']");
    let with = |change: fn(&mut Request)| {
        let mut request = request();
        change(&mut request);
        let problems = plan(&project(&steps), &targets(), &request).unwrap_err();
        let told = |p: &Problem| format!("{} [{}]", p.message, p.hint.as_deref().unwrap_or(""));
        problems.iter().map(told).collect::<String>()
    };
    assert_eq!(
        with(|r| r.environment = "Tets".to_owned()),
        "no target is in environment \"Tets\" [did you mean \"Test\"?]"
    );
    assert_eq!(
        with(|r| r.environment = "Nowhere".to_owned()),
        "no target is in environment \"Nowhere\" [known are Live, Test]"
    );
    assert_eq!(
        with(|r| r.only = Some("web-3".to_owned())),
        "\"web-3\" is no role and no target [did you mean \"web-1\"?]"
    );
    assert_eq!(
        with(|r| r.only = Some("acme-1".to_owned())),
        "\"acme-1\" takes no part in this environment, for this tenant []"
    );
    let nothing = with(|r| r.only = Some("db".to_owned()));
    assert!(nothing.starts_with("no step runs on any of the chosen targets"), "{nothing}");
    let text = format!("[rollout]\ncanary = {{ targets = ['wbe-1'] }}\n{steps}");
    let told = refused(&text, &request());
    assert!(told[0].contains("rollout.canary.targets[0]: no target is \"wbe-1\""), "{told:?}");
}

#[test]
fn only_a_role_or_a_target_takes_part() {
    let steps = step("A", "");
    let with = |only: &str| {
        let request = Request { only: Some(only.to_owned()), ..request() };
        let plan = plan(&project(&steps), &targets(), &request).unwrap();
        plan.targets.into_iter().map(|target| target.name).collect::<Vec<_>>()
    };
    assert_eq!(with("web"), ["web-1", "web-2", "web-10"]);
    assert_eq!(with("role:db"), ["db-1"]);
    assert_eq!(with("web-10"), ["web-10"]);
    assert_eq!(with("target:worker"), ["worker"]);
}

#[test]
fn what_somebody_may_not_have_expected_is_remarked() {
    let text = [
        variable("Port", "80", "role = 'wbe'"),
        step("A", "roles = ['db']"),
        step("B", "roles = ['mail']"),
    ];
    let request = Request { only: Some("db".to_owned()), ..request() };
    let plan = plan(&project(&text.concat()), &targets(), &request).unwrap();
    let expected = [
        "variable Port, line 2 is scoped to role \"wbe\", which no target has; did you mean \"web\"?",
        "step \"B\": no chosen target has role mail",
    ];
    assert_eq!(plan.remarks, expected);
    let web = Request { only: Some("web-1".to_owned()), ..self::request() };
    let problems = super::plan(&project(&text.concat()), &targets(), &web).unwrap_err();
    assert!(problems.to_string().contains("nothing is deployed"), "{problems}");
}

#[test]
fn a_plan_is_deterministic_and_shows_no_secret() {
    let text = "[[variables]]\nname = 'Password'\nvalue_env = 'X'\nsensitive = true\n\
                [[variables]]\nname = 'Url'\nvalue = 'pg://#{Password}@db'\n";
    let more = "inputs = { DB = '#{Url}' }";
    let mut project = project(&format!("{text}{}", step("A", more)));
    super::super::load::values(&mut project, &request(), |name| {
        (name == "X").then(|| "hunter2".into())
    })
    .unwrap();
    let (one, other) =
        (plan(&project, &targets(), &request()), plan(&project, &targets(), &request()));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one, other);
    let job = one.steps().flat_map(|step| &step.jobs).next().unwrap();
    assert_eq!(job.environment["DB"].expose(), "pg://hunter2@db");
    let json = serde_json::to_string(&one).unwrap();
    assert_eq!(json, serde_json::to_string(&other).unwrap());
    assert!(!format!("{json}{one:?}").contains("hunter2"));
    assert!(json.contains(r#""VAR_PASSWORD":{"sensitive":true}"#), "{json}");
}

#[test]
fn a_secret_stands_in_no_path_version_tag_or_argument() {
    let secret = "[[variables]]\nname = 'P'\nvalue_env = 'X'\nsensitive = true\n";
    let package = "[[packages]]\nid = 'a'\nversion = '1'\nfile = '#{P}.tgz'\n";
    let steps = step("A", "packages = ['a']\narguments = ['--password=#{P}']");
    let tag = variable(special::CONCURRENCY_TAG, "#{P}", "");
    let mut project = project(&format!("{secret}{package}{steps}{tag}"));
    let environment = |_: &str| Some("hunter2".into());
    super::super::load::values(&mut project, &request(), environment).unwrap();
    let told = plan(&project, &targets(), &request()).unwrap_err().to_string();
    assert!(told.contains("packages[0].file: a secret stands in it"), "{told}");
    assert!(told.contains("steps[0].arguments[0]: a secret stands in it"), "{told}");
    assert!(told.contains("Octopus.Task.ConcurrencyTag is a secret"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn the_request_then_the_step_then_the_target_says_how_long_an_agent_is_waited_for() {
    let minutes = |plan: &Plan| -> Vec<u64> {
        let jobs = plan.steps().flat_map(|step| &step.jobs);
        jobs.map(|job| job.away_limit.as_secs() / 60).collect()
    };
    let f = "ab".repeat(32);
    let target = |name: &str, more: &str| {
        format!(
            "[targets.{name}]\naddress = '{name}:1'\nfingerprint = '{f}'\nenvironments = ['Test']\n{more}\n"
        )
    };
    let slow = target("slow", "limits.away_limit = '30m'") + &target("usual", "");
    let targets = Targets::parse("targets.toml", &slow).unwrap();
    let steps = "[[steps]]\nname = 'a'\nrun = 'true'\n\
                 [[steps]]\nname = 'b'\nrun = 'true'\naway_limit = '2h'\n";
    let text = |rollout: &str| format!("project = 'p'\n{rollout}{steps}");
    let project = |rollout: &str| Project::parse("deploy.toml", &text(rollout)).unwrap();
    let usual = plan(&project(""), &targets, &request()).unwrap();
    assert_eq!(minutes(&usual), [30, 10, 120, 120]);
    let wide = project("[rollout]\naway_limit = '20m'\n");
    let planned = plan(&wide, &targets, &request()).unwrap();
    assert_eq!(minutes(&planned), [30, 20, 120, 120]);
    let packages: Vec<_> = planned.targets.iter().map(|t| t.away_limit.as_secs() / 60).collect();
    assert_eq!(packages, [30, 20]);
    let away_limit = Some(Duration::from_mins(1));
    let asked = Request { away_limit, ..request() };
    assert_eq!(minutes(&plan(&wide, &targets, &asked).unwrap()), [1, 1, 1, 1]);
}
