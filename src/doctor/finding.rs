//! Pure: what a check found, how bad it is, and what to do about it.

/// How bad it is; what is worse is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be, or nothing to look at.
    Ok,
    /// It can't be seen from here, or not by this user.
    Unknown,
    /// It works, but not for ever, or not as it should.
    Warning,
    /// Something does not work, or not safely.
    Error,
}

impl Verdict {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, in a line.
    pub found: String,
    /// What to do about it; empty when it is ok.
    pub hints: Vec<String>,
}

impl Finding {
    fn new(verdict: Verdict, found: impl Into<String>) -> Self {
        Self { verdict, found: found.into(), hints: Vec::new() }
    }

    pub(super) fn ok(found: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, found)
    }

    pub(super) fn unknown(found: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, found)
    }

    pub(super) fn warning(found: impl Into<String>) -> Self {
        Self::new(Verdict::Warning, found)
    }

    pub(super) fn error(found: impl Into<String>) -> Self {
        Self::new(Verdict::Error, found)
    }

    /// What this user may not see.
    pub(super) fn needs_root(what: &str) -> Self {
        Self::unknown(format!("{what} can't be seen by this user"))
            .hint("run it as root, or as the agent's user")
    }

    pub(super) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }

    /// Several answers to one question: the worst of them counts, and what is ok beside it is left out.
    pub(super) fn all(findings: Vec<Self>) -> Self {
        let verdict = findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::Ok);
        let told = |f: &Self| verdict == Verdict::Ok || f.verdict > Verdict::Ok;
        let findings: Vec<Self> = findings.into_iter().filter(told).collect();
        let found: Vec<&str> = findings.iter().map(|f| f.found.as_str()).collect();
        let found = found.join("; ");
        let mut hints = Vec::new();
        for hint in findings.into_iter().flat_map(|f| f.hints) {
            if !hints.contains(&hint) {
                hints.push(hint);
            }
        }
        Self { verdict, found, hints }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_answers_the_worst_counts_and_what_is_ok_is_left_out() {
        let all = Finding::all(vec![
            Finding::ok("a"),
            Finding::warning("b").hint("do b"),
            Finding::error("c").hint("do c").hint("do b"),
        ]);
        let expected = Finding::error("b; c").hint("do b").hint("do c");
        assert_eq!(all, expected);
        assert_eq!(Finding::all(vec![Finding::ok("a"), Finding::ok("b")]), Finding::ok("a; b"));
    }
}
