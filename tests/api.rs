//! Promise: an orchestrator in any language finds a standard gRPC service: health, reflection, pages,
//! a stream of how busy the agent is, and every field described.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use baton::client::connect;
use baton::wire::v1;
use futures_util::stream;
use prost::Message as _;
use support::{TestAgent, World, soon};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use v1::agent_client::AgentClient;
use v1::scripts_client::ScriptsClient;

async fn channel(agent: &TestAgent) -> Channel {
    connect::unix(&agent.folder.join("run/agent.sock")).await.unwrap()
}

#[tokio::test]
async fn health_says_that_both_services_serve() {
    let world = World::new();
    let agent = world.agent().await;
    let mut health = HealthClient::new(channel(&agent).await);
    for service in ["", "baton.v1.Scripts", "baton.v1.Agent"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = soon("health", health.check(request)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
}

#[tokio::test]
async fn reflection_lists_the_services_and_gives_their_files() {
    let world = World::new();
    let agent = world.agent().await;
    let mut reflection = ServerReflectionClient::new(channel(&agent).await);
    let ask =
        |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("baton.v1.Scripts".to_owned())),
    ]);
    let call = reflection.server_reflection_info(requests);
    let mut answers = soon("reflection", call).await.unwrap().into_inner();
    let mut next = async || answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = next().await else {
        panic!("no list");
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"baton.v1.Scripts") && names.contains(&"baton.v1.Agent"), "{names:?}");
    let MessageResponse::FileDescriptorResponse(files) = next().await else {
        panic!("no file");
    };
    let file = prost_types::FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
    assert_eq!(file.name(), "baton/v1/script.proto");
}

#[tokio::test]
async fn the_agent_tells_how_busy_it_is_on_each_change() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let mut client = AgentClient::new(channel(&agent).await);
    let mut counts = client.watch(v1::AgentWatchRequest {}).await.unwrap().into_inner();
    let mut until = async |wanted: fn(&v1::AgentStatus) -> bool| {
        let search = async {
            loop {
                let status = counts.message().await.unwrap().unwrap().status.unwrap();
                if wanted(&status) {
                    return status;
                }
            }
        };
        soon("a change", search).await
    };
    until(|status| *status == v1::AgentStatus::default()).await;
    let running = agent.script(gate.wait()).start().await;
    let others = [agent.script("true").start().await, agent.script("true").start().await];
    until(|s| (s.running, s.waiting, s.queued) == (1, 1, 1)).await;
    gate.open();
    running.is_done().await;
    others[1].is_done().await;
    until(|status| *status == v1::AgentStatus::default()).await;
}

#[tokio::test]
async fn a_long_list_comes_in_pages_and_misses_nobody() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    for number in 0..7 {
        agent.script("true").observer().id(&format!("done-{number}")).outcome().await;
    }
    let running = agent.script(gate.wait()).id("running").start().await;
    agent.script("true").id("waits").start().await;
    let mut client = ScriptsClient::new(channel(&agent).await);
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListRequest { page_size: 2, page_token, ..v1::ListRequest::default() };
        let page = client.list(request).await.unwrap().into_inner();
        assert!(page.scripts.len() <= 2);
        seen.extend(page.scripts.into_iter().map(|script| script.script_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let done = (0..7).rev().map(|number| format!("done-{number}"));
    let expected: Vec<_> =
        ["running".to_owned(), "waits".to_owned()].into_iter().chain(done).collect();
    assert_eq!(seen, expected);
    for request in [
        v1::ListRequest { page_size: 1001, ..v1::ListRequest::default() },
        v1::ListRequest { page_token: "x".to_owned(), ..v1::ListRequest::default() },
    ] {
        assert_eq!(client.list(request).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    gate.open();
    running.is_done().await;
}

/// Three readers that never read must not stall a fourth on the same connection.
#[tokio::test]
async fn readers_that_stall_hold_up_nobody() {
    let world = World::new();
    let agent = world.agent().await;
    let flood = agent.script("head -c 20000000 /dev/zero").observer().start().await;
    let mut client = ScriptsClient::new(channel(&agent).await);
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let request =
            v1::WatchRequest { script_id: flood.id.to_string(), ..v1::WatchRequest::default() };
        stalled.push(client.watch(request).await.unwrap().into_inner());
    }
    flood.is_done().await;
    let request = v1::GetRequest { script_id: flood.id.to_string() };
    let script = soon("Get", client.get(request)).await.unwrap().into_inner().script.unwrap();
    assert_eq!(script.output_bytes, 20_000_000);
    drop(stalled);
}

/// What a caller reads in its own language comes from the comments in `proto/`.
#[test]
fn every_message_field_and_call_is_described() {
    let folder = std::path::Path::new("proto/baton/v1");
    let mut bare = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate().skip(1) {
            let starts = ["message ", "service ", "enum ", "rpc ", "oneof "];
            let is_field = line.ends_with(';') && line.contains(" = ");
            let is_statement = line.starts_with("syntax") || line.starts_with("option");
            if (is_field && !is_statement || starts.iter().any(|start| line.starts_with(start)))
                && !lines[number - 1].starts_with("//")
            {
                bare.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(bare.is_empty(), "{bare:#?}");
}

/// What is published: two exclusive scripts never seem to run at once.
#[tokio::test]
async fn nobody_is_told_that_two_exclusive_scripts_run() {
    let world = World::new();
    let agent = world.agent().await;
    let mut client = AgentClient::new(channel(&agent).await);
    let mut counts = client.watch(v1::AgentWatchRequest {}).await.unwrap().into_inner();
    let mut scripts = Vec::new();
    for _ in 0..20 {
        scripts.push(agent.script("true").start().await);
    }
    let watching = async {
        let (mut most, mut started) = (0, false);
        loop {
            let status = counts.message().await.unwrap().unwrap().status.unwrap();
            most = most.max(status.running);
            started |= status.running > 0;
            if started && status == v1::AgentStatus::default() {
                return most;
            }
        }
    };
    assert_eq!(soon("the end of all", watching).await, 1);
}
