//! etcd, where `client.toml` names it: whether each of its members answers.

use super::asking::{ANSWER_LIMIT, within};
use super::finding::Finding;
use super::scene::Scene;
use crate::config::client::{ClientConfig, Coordination};
use crate::fleet::{Fleet, Options};
use crate::text::chain;

/// Each member answers.
pub(super) fn etcd(scene: &Scene) -> Finding {
    match ClientConfig::load(&scene.folders.config) {
        Ok(config) if config.coordination.etcd.is_empty() => Finding::ok("client.toml names none"),
        Ok(config) => judge(&ask(&config.coordination)),
        Err(_) => Finding::unknown("client.toml can't be read"),
    }
}

/// What each member says; `None`: it answers.
fn ask(coordination: &Coordination) -> Vec<(String, Option<String>)> {
    let one = |url: &String| {
        let options = Options { ca: coordination.etcd_ca.clone(), ..Options::default() };
        let urls = [url.clone()];
        async move {
            let answer = Fleet::connect(&urls, options).await;
            let [url] = urls;
            (url, answer.err().map(|error| chain(&error)))
        }
    };
    let all = async { futures_util::future::join_all(coordination.etcd.iter().map(one)).await };
    let silent = |problem: &str| {
        let all = coordination.etcd.iter().map(|url| (url.clone(), Some(problem.to_owned())));
        all.collect()
    };
    match within(ANSWER_LIMIT, all) {
        Ok(Some(answers)) => answers,
        Ok(None) => silent("no answer in time"),
        Err(error) => silent(&error.to_string()),
    }
}

fn judge(answers: &[(String, Option<String>)]) -> Finding {
    let silent: Vec<&str> = answers.iter().filter_map(|(_, problem)| problem.as_deref()).collect();
    let found = format!("{} of {} members answer", answers.len() - silent.len(), answers.len());
    if silent.is_empty() {
        return Finding::ok(found);
    }
    let found = format!("{found}: {}", silent.join("; "));
    let hint =
        "is it up, is its port open for this machine, and does `etcd_ca` in client.toml fit?";
    // A cluster decides with more than half of its members.
    if silent.len() * 2 < answers.len() {
        return Finding::warning(found).hint(hint);
    }
    Finding::error(found).hint(hint).hint("fleet-wide mutexes can't be had until then")
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_member_that_is_silent_is_a_warning_and_half_of_them_an_error() {
        for (silent, all, verdict) in [
            (0, 3, Verdict::Ok),
            (1, 3, Verdict::Warning),
            (2, 3, Verdict::Error),
            (1, 1, Verdict::Error),
            (1, 2, Verdict::Error),
        ] {
            let answers: Vec<_> = (0..all)
                .map(|at| (format!("http://{at}:1"), (at < silent).then(|| "refused".to_owned())))
                .collect();
            assert_eq!(judge(&answers).verdict, verdict, "{silent} of {all}");
        }
    }
}
