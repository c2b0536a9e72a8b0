//! The store against real SQLite files.

use super::*;
use crate::script::OutcomeKind;

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
    let filter = DoneFilter { labels: [("project".to_owned(), "web".to_owned())].into() };
    let page = store.done_page(filter.clone(), None, 2).await.unwrap();
    let ids = |page: &[Record]| page.iter().map(|r| r.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&page), ["s5", "s4"]);
    let after = page.last().map(DoneCursor::of);
    assert_eq!(ids(&store.done_page(filter, after, 9).await.unwrap()), ["s2", "s1"]);
    assert!(store.living().await.unwrap().is_empty());
}

#[tokio::test]
async fn only_a_script_that_is_done_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    store.accept(record("a", 1)).await.unwrap();
    let id: ScriptId = "a".parse().unwrap();
    assert!(!store.forget(&id).await.unwrap());
    store.update(done("a")).await.unwrap();
    assert!(store.forget(&id).await.unwrap());
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
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, .. })));
    crate::durable::replace_file(&path, &[b'x'; 4096], 0o600).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
}

#[tokio::test]
async fn a_disk_that_refuses_is_an_error_and_not_the_end() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("agent.db");
    let connection = schema::open(&path).unwrap();
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
    let connection = schema::open(&root.path().join("agent.db")).unwrap();
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
async fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let _store = open(&root);
    let mode = root.path().join("agent.db").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
