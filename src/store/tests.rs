//! The store against real SQLite files.

use super::*;

fn record(id: &str, seq: u64) -> Record {
    Record {
        id: id.parse().unwrap(),
        seq,
        request: b"request".to_vec(),
        phase: Phase::Queued,
        labels: [("project".to_owned(), "web".to_owned())].into(),
        mutex: "machine".to_owned(),
        queued_at: Timestamp::now(),
        started_at: None,
        ended_at: None,
        stop_reason: None,
        output_bytes: 0,
    }
}

fn done(id: &str) -> ScriptUpdate {
    let outcome = OutcomeKind::Exited { code: 0 }.into();
    ScriptUpdate {
        phase: Some(Phase::Done(outcome)),
        ended_at: Some(Timestamp::now()),
        output_bytes: Some(7),
        ..ScriptUpdate::of(id.parse().unwrap())
    }
}

fn ids(page: &[Record]) -> Vec<String> {
    page.iter().map(|record| record.id.to_string()).collect()
}

fn open(root: &tempfile::TempDir) -> Store {
    Store::open(&root.path().join("agent.db")).unwrap()
}

#[tokio::test]
async fn rule_1_what_was_accepted_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let (a, b) = (record("a", 2), record("b", 1));
    assert!(matches!(store.accept(a.clone()).await.unwrap(), Accepted::New));
    assert!(matches!(store.accept(b.clone()).await.unwrap(), Accepted::New));
    store.close().await;
    let store = open(&root);
    assert_eq!(store.living().await.unwrap(), [b, a]);
    assert_eq!(store.max_seq().await.unwrap(), 2);
}

#[tokio::test]
async fn an_id_is_accepted_once_however_often_it_is_sent() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let calls = (1..=100).map(|seq| store.accept(record("same", seq)));
    let answers = futures_util::future::join_all(calls).await;
    let new = answers.iter().filter(|answer| matches!(answer, Ok(Accepted::New))).count();
    assert_eq!(new, 1);
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn those_that_are_done_come_newest_first_by_label_and_page() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    for seq in 1..=5 {
        let id = format!("s{seq}");
        let mut record = record(&id, seq);
        if seq == 3 {
            record.labels.clear();
        }
        store.accept(record).await.unwrap();
        store.update(done(&id)).await.unwrap();
    }
    let labels = [("project".to_owned(), "web".to_owned())].into();
    let filter = DoneFilter { labels, ..DoneFilter::default() };
    let page = store.done_page(filter.clone(), None, 2).await.unwrap();
    assert_eq!(ids(&page.records), ["s5", "s4"]);
    let page = store.done_page(filter, page.next, 2).await.unwrap();
    assert_eq!(ids(&page.records), ["s2", "s1"]);
    assert_eq!(page.next, None);
    assert!(store.living().await.unwrap().is_empty());
}

#[tokio::test]
async fn only_a_script_that_is_done_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    store.accept(record("a", 1)).await.unwrap();
    let id: ScriptId = "a".parse().unwrap();
    assert!(!store.forget(Some(&id), 1).await.unwrap());
    store.update(done("a")).await.unwrap();
    assert!(!store.forget(Some(&"b".parse().unwrap()), 1).await.unwrap());
    assert!(store.forget(Some(&id), 1).await.unwrap());
    assert_eq!(store.get(&id).await.unwrap(), None);
}

#[tokio::test]
async fn rule_3_a_newer_database_is_refused_and_so_is_something_else() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("agent.db");
    open(&root).close().await;
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(
        Store::open(&path),
        Err(StoreError::Newer { source: Newer { found: 99, .. }, .. })
    ));
    // It is looked at under whatever name.
    let odd = root.path().join("a %3f?b#ä.db");
    std::fs::rename(&path, &odd).unwrap();
    assert!(matches!(Store::check(&odd), Err(StoreError::Newer { .. })));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    crate::durable::replace_file(&path, &[b'x'; 4096], 0o600).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
}

#[tokio::test]
async fn a_disk_that_refuses_is_an_error_and_not_the_end() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("agent.db");
    let connection = schema::open(&path, |_| {}).unwrap();
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    connection.pragma_update(None, "max_page_count", pages + 2).unwrap();
    let (commands, received) = mpsc::channel(8);
    let thread = std::thread::spawn(move || worker::run(connection, received));
    let store = Store { commands, thread: Arc::new(Mutex::new(Some(thread))) };
    let large = Record { request: vec![0; 1 << 20], ..record("large", 1) };
    store.accept(large).await.unwrap_err();
    assert!(matches!(store.accept(record("small", 2)).await.unwrap(), Accepted::New));
    store.close().await;
    assert!(matches!(store.max_seq().await, Err(StoreError::Closed)));
}

/// One call of a batch for which there is no room takes back what came before it, and nothing else.
#[tokio::test]
async fn what_a_caller_is_told_of_a_batch_is_true() {
    let root = tempfile::tempdir().unwrap();
    let connection = schema::open(&root.path().join("agent.db"), |_| {}).unwrap();
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    connection.pragma_update(None, "max_page_count", pages + 2).unwrap();
    let (commands, received) = mpsc::channel(8);
    let store = Store { commands, thread: Arc::new(Mutex::new(None)) };
    let large = Record { request: vec![0; 1 << 20], ..record("large", 2) };
    let records = [record("before", 1), large, record("after", 3)];
    let calls = records.into_iter().map(|record| store.accept(record));
    // All three wait before the thread begins.
    let worker = async {
        let begin = tokio::task::yield_now();
        begin.await;
        std::thread::spawn(move || worker::run(connection, received))
    };
    let (answers, _thread) = tokio::join!(futures_util::future::join_all(calls), worker);
    for (answer, id) in answers.into_iter().zip(["before", "large", "after"]) {
        let kept = store.get(&id.parse().unwrap()).await.unwrap().is_some();
        assert_eq!(answer.is_ok(), kept, "{id}: {answer:?}");
    }
    assert!(store.get(&"after".parse().unwrap()).await.unwrap().is_some());
    store.close().await;
}

#[tokio::test]
async fn that_the_agent_drains_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    assert_eq!(store.drain().await.unwrap(), None);
    let since = Timestamp::now();
    let drain = Drain { since, by: "ci".to_owned(), reason: "kernel".to_owned() };
    store.set_drain(Some(drain.clone())).await.unwrap();
    store.set_drain(Some(drain.clone())).await.unwrap();
    store.close().await;
    let store = open(&root);
    assert_eq!(store.drain().await.unwrap(), Some(drain));
    store.set_drain(None).await.unwrap();
    assert_eq!(store.drain().await.unwrap(), None);
}

#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let _store = open(&root);
    let mode = root.path().join("agent.db").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A database of the first version, with rows as only a damaged disk or a careless hand leaves them.
fn first_version(path: &Path) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch(include_str!("steps/1-scripts.sql")).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    let exited = |code: i32| {
        let outcome = OutcomeKind::Exited { code }.into();
        serde_json::to_string(&Phase::Done(outcome)).unwrap()
    };
    let label = r#"{"project":"web"}"#;
    for (seq, id, phase, labels, ended_at) in [
        (1, "good", exited(0).as_str(), label, Some(50)),
        (2, "bad", &exited(3), label, None),
        (3, "torn", r#"{"phase":"do"#, label, Some(70)),
        (4, "odd", r#"{"outcome":{"kind":{"kind":[1],"code":"x"}}}"#, "{torn", Some(80)),
        (5, "../x", &exited(0), label, Some(90)),
    ] {
        connection
            .execute(
                "INSERT INTO scripts VALUES (?1, ?2, x'00', ?3, 1, ?4, 'machine', 7, NULL, ?5, NULL, 3)",
                rusqlite::params![id, seq, phase, labels, ended_at],
            )
            .unwrap();
    }
    let living = "INSERT INTO scripts VALUES ('lives', 6, x'00', 'torn', 0, '{}', 'm', 7, NULL, NULL, NULL, 0)";
    connection.execute(living, []).unwrap();
}

#[tokio::test]
async fn rules_3_and_4_an_older_database_is_migrated_with_its_damaged_rows() {
    let root = tempfile::tempdir().unwrap();
    first_version(&root.path().join("agent.db"));
    let store = open(&root);
    let find = async |filter: DoneFilter| store.done_page(filter, None, 9).await.unwrap().records;
    let all = find(DoneFilter::default()).await;
    assert_eq!(ids(&all), ["odd", "torn", "bad", "good"]);
    for damaged in &all[..2] {
        let Phase::Done(outcome) = &damaged.phase else { panic!("{damaged:?}") };
        assert!(matches!(outcome.kind, OutcomeKind::Lost { .. }), "{damaged:?}");
    }
    let labels = || [("project".to_owned(), "web".to_owned())].into();
    let filter = DoneFilter { labels: labels(), ..DoneFilter::default() };
    assert_eq!(ids(&find(filter).await), ["torn", "bad", "good"]);
    for (outcome, expected) in [
        (OutcomeFilter::Succeeded, &["good"][..]),
        (OutcomeFilter::Failed, &["odd", "torn", "bad"]),
        (OutcomeFilter::Kind("lost"), &["odd", "torn"]),
        (OutcomeFilter::Kind("exited"), &["bad", "good"]),
    ] {
        let filter = DoneFilter { outcomes: vec![outcome.clone()], ..DoneFilter::default() };
        assert_eq!(ids(&find(filter).await), expected, "{outcome:?}");
    }
    assert_eq!(ids(&store.living().await.unwrap()), ["lives"]);
    // "bad" ended when it was accepted: nothing later is known. The one without an id is counted.
    let kept = store.kept(9).await.unwrap();
    let oldest: Vec<_> = kept.oldest.iter().map(|oldest| oldest.seq).collect();
    assert_eq!((kept.count, kept.bytes, oldest), (5, 0, vec![2, 1, 3, 4, 5]));
    // An opened database is not migrated again, and what comes now is found as well.
    store.accept(record("new", 7)).await.unwrap();
    store.update(done("new")).await.unwrap();
    store.close().await;
    let filter = DoneFilter { labels: labels(), ..DoneFilter::default() };
    let page = open(&root).done_page(filter, None, 1).await.unwrap();
    assert_eq!(ids(&page.records), ["new"]);
}

#[tokio::test]
async fn history_is_asked_by_time_and_outcome_and_paged() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let at = |second| Timestamp::from_second(second).unwrap();
    for (seq, queued, ended, kind) in [
        (1, 10, 20, OutcomeKind::Exited { code: 0 }),
        (2, 11, 40, OutcomeKind::Exited { code: 1 }),
        (3, 30, 35, OutcomeKind::Cancelled { while_queued: true, reason: String::new() }),
        (4, 50, 60, OutcomeKind::Lost { reason: String::new() }),
    ] {
        let id = format!("s{seq}");
        store.accept(Record { queued_at: at(queued), ..record(&id, seq) }).await.unwrap();
        let phase = Some(Phase::Done(kind.into()));
        let update = ScriptUpdate { phase, ended_at: Some(at(ended)), ..done(&id) };
        store.update(update).await.unwrap();
    }
    let find = async |since: Option<i64>, until: Option<i64>, outcomes: &[OutcomeFilter]| {
        let filter = DoneFilter {
            since: since.map(at),
            until: until.map(at),
            outcomes: outcomes.to_vec(),
            ..DoneFilter::default()
        };
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.done_page(filter.clone(), after, 1).await.unwrap();
            found.extend(ids(&page.records));
            after = page.next;
            if after.is_none() {
                return found.join(" ");
            }
        }
    };
    assert_eq!(find(None, None, &[]).await, "s4 s3 s2 s1");
    // What was there at some time between the two.
    assert_eq!(find(Some(35), Some(50), &[]).await, "s3 s2");
    assert_eq!(find(Some(21), None, &[]).await, "s4 s3 s2");
    assert_eq!(find(None, Some(11), &[]).await, "s1");
    assert_eq!(find(None, None, &[OutcomeFilter::Failed]).await, "s4 s2");
    let two = [OutcomeFilter::Succeeded, OutcomeFilter::Kind("cancelled")];
    assert_eq!(find(None, None, &two).await, "s3 s1");
    assert_eq!(find(Some(61), None, &[]).await, "");
}

#[tokio::test]
async fn what_is_kept_is_counted_and_goes_with_its_script() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    for seq in 1..=3 {
        store.accept(record(&format!("s{seq}"), seq)).await.unwrap();
    }
    for id in ["s1", "s2"] {
        store.update(done(id)).await.unwrap();
    }
    let id = |name: &str| name.parse::<ScriptId>().unwrap();
    let unmeasured = store.unmeasured(9).await.unwrap();
    assert_eq!(unmeasured, [(Some(id("s1")), 1), (Some(id("s2")), 2)]);
    store.measured(1, 100).await.unwrap();
    let request = u64::try_from(b"request".len()).unwrap();
    let kept = store.kept(1).await.unwrap();
    assert_eq!((kept.count, kept.bytes), (2, 100 + request));
    assert_eq!((kept.oldest[0].seq, kept.oldest[0].bytes), (1, 100 + request));
    assert!(store.forget(None, 1).await.unwrap());
    let kept = store.kept(9).await.unwrap();
    assert_eq!((kept.count, kept.bytes, kept.oldest.len()), (1, 0, 1));
    let ids = ["s1", "s2", "s3", "s4"].map(id).to_vec();
    assert_eq!(store.unknown(ids).await.unwrap(), [id("s1"), id("s4")]);
    store.close().await;
    let connection = schema::open(&root.path().join("agent.db"), |_| {}).unwrap();
    let count: i64 =
        connection.query_row("SELECT count(*) FROM script_labels", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 2);
}
