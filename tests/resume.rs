//! Promise: a client that disappears changes nothing, and output resumes at the offset, byte for byte.

mod support;

use baton::client::{Heard, connect};
use support::{World, exited, output, reason, soon};

/// Binary, partial lines, both streams.
const OUTPUT: &str =
    r"for i in $(seq 200); do printf 'line %d\0\377' $i; printf 'e%d' $i >&2; done";

#[tokio::test]
async fn output_resumes_at_every_kind_of_offset() {
    let world = World::new();
    let agent = world.agent().await;
    let script = agent.script(OUTPUT).start().await;
    let whole = script.output().await;
    assert_eq!(whole.len(), (1..=200).map(|i: i32| 8 + 2 * i.to_string().len()).sum::<usize>());
    for offset in [0, 1, 7, 100, whole.len() / 2, whole.len() - 1, whole.len()] {
        let from = u64::try_from(offset).unwrap();
        let rest = output(agent.client.watch(script.id.clone(), from, true)).await;
        assert_eq!(rest, whole[offset..], "from {offset}");
    }
    let beyond = u64::try_from(whole.len()).unwrap() + 1;
    let error = agent.client.watch(script.id.clone(), beyond, true).next().await.unwrap_err();
    assert_eq!(reason(&error), "OFFSET_BEYOND_END");
}

#[tokio::test]
async fn a_client_that_disappears_in_the_stream_loses_nothing() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let text = format!("printf first; {}; printf second", gate.wait());
    let spec = agent.script(text).spec;
    let id = spec.script_id.clone();
    // A connection of its own, which is dropped in the middle.
    let socket = agent.folder.join("run/agent.sock");
    let gone = baton::client::Client::new(connect::unix(&socket).await.unwrap());
    let mut following = gone.run(spec);
    let first = async {
        loop {
            if let Some(Heard::Output { data, .. }) = following.next().await.unwrap() {
                break data;
            }
        }
    };
    assert_eq!(soon("the first output", first).await, "first");
    let offset = following.offset();
    drop((following, gone));
    gate.open();
    assert_eq!(output(agent.client.watch(id.clone(), offset, true)).await, b"second");
    let script = support::Started { client: agent.client.clone(), id };
    assert!(exited(&script.outcome().await, 0));
}

#[tokio::test]
async fn a_client_goes_on_by_itself_when_the_agent_is_restarted() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let script =
        agent.script(format!("printf one; {}; printf two; exit 5", gate.wait())).start().await;
    let following = agent.client.watch(script.id.clone(), 0, true);
    let reading = tokio::spawn(output(following));
    script.has_written(3).await;
    agent.kill();
    // The script never notices, and ends while there is no agent.
    gate.open();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    assert_eq!(soon("the output", reading).await.unwrap(), b"onetwo");
    let script = support::Started { client: again.client.clone(), id: script.id };
    assert!(exited(&script.outcome().await, 5));
}

#[tokio::test]
async fn queued_scripts_keep_their_place_when_the_agent_is_killed() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let (gate, log) = (world.gate(), world.path("log"));
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let text = format!("echo {number} >> {}", log.display());
        ids.push(agent.script(text).id(&format!("q{number}")).start().await.id);
    }
    agent.kill();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let last = support::Started { client: again.client.clone(), id: ids[4].clone() };
    assert_eq!(last.is_waiting().await.waits[0].position, 5);
    gate.open();
    assert!(exited(&last.outcome().await, 0));
    assert_eq!(support::lines(&log), ["0", "1", "2", "3", "4"]);
}
