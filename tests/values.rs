//! Promise: what a script gives back comes back: outputs with the outcome, progress while it runs; and
//! scripts written for Octopus are understood.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::process::Stdio;

use baton::client::Heard;
use baton::script::{Outcome, Phase, Stream};
use baton::values::message::Level;
use baton::values::{MAX_VALUE_BYTES, Place, Problem, Progress};
use serde_json::Value;
use support::{DEADLINE, World, exited, finish, soon};

/// The outputs as `name=value`.
fn outputs(outcome: &Outcome) -> Vec<String> {
    outcome.values.outputs.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn remarks(outcome: &Outcome) -> Vec<String> {
    outcome.values.remarks.iter().map(ToString::to_string).collect()
}

fn progress(percent: u8, message: &str) -> Option<Progress> {
    Progress::new(percent, message)
}

#[tokio::test]
async fn outputs_come_back_with_the_outcome() {
    let world = World::new();
    let agent = world.agent().await;
    let script = agent.script(
        "echo version=1.1 >> $BATON_OUTPUT
         echo version=1.2 >> $BATON_OUTPUT
         printf 'log<<END\\none\\n\\ntwo=2\\nEND\\n' >> $BATON_OUTPUT
         printf half=1 >> $BATON_OUTPUT
         baton output plain 'a b=c'
         baton output -- dashes '-x'
         printf 'three\\nlines\\n\\n' | baton output lines -
         exit 3",
    );
    let script = script.start().await;
    let outcome = script.outcome().await;
    assert!(exited(&outcome, 3), "{outcome:?}");
    let expected = [
        "dashes=-x",
        "half=1",
        "lines=three\nlines\n",
        "log=one\n\ntwo=2",
        "plain=a b=c",
        "version=1.2",
    ];
    assert_eq!(outputs(&outcome), expected);
    assert_eq!(remarks(&outcome), [""; 0]);
    // Also from the store, in a list without them.
    let phase = agent.client.get(&script.id).await.unwrap().phase;
    assert_eq!(phase, Phase::Done(outcome));
    let listed = agent.client.list(&[], &[].into(), 10).await.unwrap();
    let Phase::Done(listed) = &listed[0].phase else { panic!("it is done") };
    assert!(listed.values.is_empty());
}

#[tokio::test]
async fn many_processes_of_a_script_give_values_at_the_same_time_and_all_come_back() {
    let world = World::new();
    let agent = world.agent().await;
    let text = "for i in $(seq 40); do printf 'a\\n%s\\n' $i | baton output n$i - & done; wait";
    let outcome = agent.script(text).outcome().await;
    assert_eq!(outcome.values.outputs.len(), 40, "{outcome:?}");
    assert_eq!(outcome.values.outputs["n7"], "a\n7");
    assert_eq!(remarks(&outcome), [""; 0]);
}

#[tokio::test]
async fn what_is_not_understood_is_remarked_and_fails_nobody() {
    let world = World::new();
    let agent = world.agent().await;
    let text = format!(
        "printf 'good=1\\nnonsense\\n\\ntext=\\377\\nopen<<END\\nmore=2\\n' >> $BATON_OUTPUT
         head -c {} /dev/zero | tr '\\0' x | sed s/^/long=/ >> $BATON_OUTPUT",
        MAX_VALUE_BYTES + 1
    );
    let outcome = agent.script(text).outcome().await;
    assert!(exited(&outcome, 0));
    assert_eq!(outputs(&outcome), ["good=1", "more=2"]);
    let expected = [
        (2, Problem::NotUnderstood, "nonsense"),
        (4, Problem::NotText, ""),
        (5, Problem::NoEnd, "open"),
        (7, Problem::TooLong, "long"),
    ];
    let seen: Vec<_> =
        outcome.values.remarks.iter().map(|r| (r.place, r.problem, &*r.name)).collect();
    assert_eq!(seen, expected.map(|(line, problem, name)| (Place::File(line), problem, name)));

    // What is no file any more holds nobody up, and is followed nowhere.
    let secret = world.path("secret");
    support::write(&secret, "stolen=1\n");
    let put = [
        "mkfifo $BATON_OUTPUT".to_owned(),
        format!("ln -s {} $BATON_OUTPUT", secret.display()),
        "mkdir $BATON_OUTPUT".to_owned(),
    ];
    for put in put {
        let outcome = agent.script(format!("rm $BATON_OUTPUT; {put}")).outcome().await;
        assert!(exited(&outcome, 0), "{put}");
        assert_eq!(outputs(&outcome), [""; 0], "{put}");
        assert_eq!(outcome.values.remarks[0].problem, Problem::Unreadable, "{put}");
    }
}

#[tokio::test]
async fn progress_is_heard_while_the_script_runs_and_stays_at_its_end() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let text =
        format!("baton progress 40 'copying files'; {}; echo 80 > $BATON_PROGRESS", gate.wait());
    let script = agent.script(text).start().await;
    let at = |wanted: Option<Progress>| {
        move |script: &baton::snapshot::Snapshot| script.progress == wanted
    };
    script.until("at 40 percent", at(progress(40, "copying files"))).await;
    let (_, queue, _) = finish(world.baton_at("a").arg("queue"));
    assert!(queue.contains("running 40%"), "{queue}");
    let (_, shown, _) = finish(world.baton_at("a").args(["show", script.id.as_str()]));
    assert!(shown.contains("progress:  40 % copying files\n"), "{shown}");
    gate.open();
    // The last one is there though the script ends at once.
    assert_eq!(script.is_done().await.progress, progress(80, ""));
    assert_eq!(agent.client.get(&script.id).await.unwrap().progress, progress(80, ""));
}

#[tokio::test]
async fn ten_thousand_reports_flood_nobody_and_the_last_one_arrives() {
    let world = World::new();
    let agent = world.agent().await;
    let (first, gate) = (world.gate(), world.gate());
    let text = format!(
        "{}; for i in $(seq 10000); do echo $((i / 101)) step $i; done > $BATON_PROGRESS
         echo 100 end > $BATON_PROGRESS; {}",
        first.wait(),
        gate.wait()
    );
    let script = agent.script(text).start().await;
    let started = script.is_running().await.started_at.unwrap();
    let mut following = agent.client.watch(script.id.clone(), 0, true);
    first.open();
    let mut heard = 0_i32;
    let last = async {
        loop {
            let Some(Heard::Script(script)) = following.next().await.unwrap() else { continue };
            heard += 1;
            if script.progress == progress(100, "end") {
                break;
            }
        }
    };
    soon("the last report", last).await;
    // Four in a second, and a few at the beginning and the end.
    let seconds = f64::from(heard - 6) / 4.0;
    let ran = jiff::Timestamp::now() - started;
    assert!(
        seconds < std::time::Duration::try_from(ran).unwrap().as_secs_f64(),
        "{heard} in {ran}"
    );
    gate.open();
    assert!(exited(&script.outcome().await, 0));
    let journal =
        agent.folder.join("state/scripts").join(script.id.as_str()).join("output.journal");
    let size = journal.metadata().unwrap().len();
    assert!(size < 64 * 1024, "{size}");
}

#[tokio::test]
async fn progress_holds_no_script_up_whoever_is_dead() {
    let world = World::new();
    let pipe = world.path("pipe");
    let told = |command: &mut std::process::Command| {
        let (code, _, told) = finish(command.env("BATON_PROGRESS", &pipe).args(["progress", "1"]));
        assert_eq!(code, 0, "{told}");
        told
    };
    assert!(told(&mut world.baton()).contains("progress is not told"));
    let gate = world.gate();
    // A pipe that nobody reads, and one that is full.
    std::os::unix::fs::symlink(gate.wait().split('\'').nth(1).unwrap(), &pipe).unwrap();
    assert_eq!(told(&mut world.baton()), "");
    gate.fill();
    let begun = std::time::Instant::now();
    assert!(told(&mut world.baton()).contains("progress is not told"));
    assert!(begun.elapsed() < DEADLINE / 2);
}

#[test]
fn outside_of_a_script_it_is_said_clearly() {
    let world = World::new();
    for words in [["output", "a", "b"].as_slice(), &["progress", "5"]] {
        let mut command = world.baton();
        command.env_remove("BATON_OUTPUT").env_remove("BATON_PROGRESS").args(words);
        let (code, _, told) = finish(&mut command);
        assert_eq!(code, 2, "{told}");
        assert!(told.contains("this is no script that baton runs"), "{told}");
        assert!(told.contains("hint: "), "{told}");
    }
    for bad in [["output", "a=b", "c"], ["output", "", "c"], ["progress", "101", ""]] {
        let mut command = world.baton();
        command.env("BATON_OUTPUT", "/dev/null").env("BATON_PROGRESS", "/dev/null").args(bad);
        let (code, _, told) = finish(&mut command);
        assert_eq!(code, 2, "{told}");
    }
}

/// Each message of Octopus's own functions, as they print it.
const OCTOPUS: &str = r"
b64() { printf %s $1 | base64 -w0; }
echo plain
echo ##octopus[not one]: a comment of the shell
echo '##octopus[setVariable name='\'$(b64 version)\'' value='\'$(b64 1.2)\'']'
echo '##octopus[setVariable name='\'$(b64 both)\'' value='\'$(b64 message)\'']'
echo both=file >> $BATON_OUTPUT
echo '##octopus[setVariable name='\'$(b64 password)\'' value='\'$(b64 hunter2)\'' sensitive='\'$(b64 True)\'']'
echo '##octopus[progress percentage='\'$(b64 40)\'' message='\'$(b64 copying)\'']'
for level in verbose highlight wait warning error ignore default; do
  echo '##octopus[stdout-'$level']'
  echo is $level
  echo err >&2
done
echo '##octopus[createArtifact path='\'$(b64 x)\'']'
printf '##oct'; sleep 0.05; printf 'opus[stdout-warning]\npart'; sleep 0.05; printf 'ly\n'
";

#[tokio::test]
async fn a_script_written_for_octopus_is_understood() {
    let world = World::new();
    let agent = world.agent().await;
    let script = agent.script(OCTOPUS).start().await;
    let outcome = script.outcome().await;
    assert!(exited(&outcome, 0), "{outcome:?}");
    assert_eq!(outputs(&outcome), ["both=file", "version=1.2"]);
    let problems: Vec<_> =
        outcome.values.remarks.iter().map(|remark| (remark.problem, &*remark.name)).collect();
    let expected = [(Problem::Sensitive, "password"), (Problem::UnknownMessage, "createArtifact")];
    assert_eq!(problems, expected);
    assert_eq!(script.is_done().await.progress, progress(40, "copying"));

    let (mut seen, mut at) = (Vec::new(), 0);
    let mut following = agent.client.watch(script.id.clone(), 0, true);
    while let Some(heard) = soon("the end", following.next()).await.unwrap() {
        let Heard::Output { stream, level, data, offset } = heard else { continue };
        assert_eq!(offset, at, "every byte is there");
        at += u64::try_from(data.len()).unwrap();
        if stream == Stream::Stdout && level != Level::Message {
            seen.push((level, String::from_utf8(data.to_vec()).unwrap()));
        }
    }
    let text = |wanted: Level| {
        let of = seen.iter().filter(|(level, _)| *level == wanted);
        of.map(|(_, text)| text.as_str()).collect::<String>()
    };
    assert_eq!(text(Level::Verbose), "is verbose\n");
    assert_eq!(text(Level::Highlight), "is highlight\n");
    assert_eq!(text(Level::Wait), "is wait\n");
    assert_eq!(text(Level::Warning), "is warning\npartly\n");
    assert_eq!(text(Level::Error), "is error\n");
    assert_eq!(text(Level::Ignored), "is ignore\n");
    let default = text(Level::Default);
    assert!(default.starts_with("plain\n") && default.contains("is default\n"), "{default}");
    assert!(default.contains("##octopus[createArtifact"), "{default}");
    // The secret is nowhere on disk, the rest of its message is.
    let folder = agent.folder.join("state/scripts").join(script.id.as_str());
    let journal = std::fs::read(folder.join("output.journal")).unwrap();
    let has = |text: &[u8]| journal.windows(text.len()).any(|part| part == text);
    assert!(!has(b"aHVudGVyMg") && has(b"value='************'"));
}

#[tokio::test]
async fn an_offset_anywhere_gives_the_same_levels() {
    let world = World::new();
    let agent = world.agent().await;
    let text =
        "echo a; echo '##octopus[stdout-error]'; echo bb; echo '##octopus[stdout-default]'; echo c";
    let script = agent.script(text).start().await;
    let whole = script.output().await;
    let read = |offset: usize| {
        let from = u64::try_from(offset).unwrap();
        let mut following = agent.client.watch(script.id.clone(), from, true);
        async move {
            let mut bytes = Vec::new();
            while let Some(heard) = soon("the end", following.next()).await.unwrap() {
                let Heard::Output { level, data, .. } = heard else { continue };
                bytes.extend(data.iter().map(|byte| (level, *byte)));
            }
            bytes
        }
    };
    let all = read(0).await;
    assert_eq!(all.len(), whole.len());
    assert!(all.contains(&(Level::Error, b'b')) && all.contains(&(Level::Default, b'c')));
    for offset in 0..=whole.len() {
        assert_eq!(read(offset).await, all[offset..], "from {offset}");
    }
}

#[tokio::test]
async fn who_wants_no_service_messages_gets_the_bytes() {
    let world = World::new();
    let agent = world.agent().await;
    let script = agent.script(OCTOPUS).with(|spec| spec.service_messages = false).start().await;
    let outcome = script.outcome().await;
    assert_eq!(outputs(&outcome), ["both=file"]);
    assert_eq!((outcome.values.remarks.len(), outcome.values.progress), (0, None));
    let mut following = agent.client.watch(script.id.clone(), 0, true);
    while let Some(heard) = soon("the end", following.next()).await.unwrap() {
        let Heard::Output { level, .. } = heard else { continue };
        assert_eq!(level, Level::Default);
    }
}

#[test]
fn the_command_tells_values_and_passes_the_bytes_on() {
    let world = World::new();
    let line = "##octopus[stdout-verbose]";
    let text = format!(
        "echo version=1.2 >> $BATON_OUTPUT; echo x >> $BATON_OUTPUT; echo '{line}'; echo y"
    );
    let (code, out, told) = finish(world.baton().args(["run", "-c", &text]));
    // Not a terminal: what a program reads is what the script wrote.
    assert_eq!((code, out), (0, format!("{line}\ny\n")), "{told}");
    assert_eq!(
        told,
        "baton: output version=1.2\nbaton: output file, line 2, `x`: not understood\n"
    );
    let (_, out, _) = finish(world.baton().args(["run", "--json", "-c", &text]));
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcome = &events.last().unwrap()["script"]["outcome"];
    assert_eq!(outcome["outputs"]["version"], "1.2");
    assert_eq!(outcome["remarks"][0]["line"], 2);
    assert_eq!(outcome["remarks"][0]["problem"], "not_understood");
    let levels: Vec<_> = events.iter().filter_map(|event| event["level"].as_str()).collect();
    assert_eq!(levels, ["message", "verbose"]);
}

#[test]
fn at_a_terminal_messages_are_hidden_and_levels_have_colours() {
    let world = World::new();
    let text =
        "echo '##octopus[stdout-warning]'; echo careful; echo '##octopus[stdout-ignore]'; echo no";
    // script(1) gives the command a terminal.
    let command = format!("{} run -c \"{text}\"", support::BATON);
    let mut terminal = std::process::Command::new("script");
    let like = world.baton();
    terminal.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.env("NO_COLOR", "").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
    let (code, out, _) = finish(&mut terminal);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("\x1b[33mcareful"), "{out:?}");
    assert!(!out.contains("octopus") && !out.contains("no\r\n"), "{out:?}");
}
