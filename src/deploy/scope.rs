//! Pure: where a value holds, and which of several is the most specific.
//!
//! 1. A scope names environments, roles, targets, steps and tenants, in any combination. It matches when
//!    each kind that it names has one that is there.
//! 2. The rank of a scope is told by the most specific kind that it names: step, then target, role, tenant,
//!    environment. Of two that are the same there, the next kind decides, and so on. How many names a kind has does not matter.
//! 3. Two that match with the same rank are a tie. A tie is an error and never decided by the order of
//!    the file.

use std::collections::BTreeSet;
use std::fmt;

use super::targets::Target;

/// Where a value holds. A kind that is empty holds everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Environments.
    pub environments: BTreeSet<String>,
    /// Roles of the target.
    pub roles: BTreeSet<String>,
    /// Targets.
    pub targets: BTreeSet<String>,
    /// Steps.
    pub steps: BTreeSet<String>,
    /// Tenants.
    pub tenants: BTreeSet<String>,
}

/// Where a value is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The deployment's environment.
    pub environment: &'a str,
    /// The deployment's tenant.
    pub tenant: Option<&'a str>,
    /// The machine; `None`: the deployment as a whole.
    pub target: Option<&'a Target>,
    /// The step; `None`: the deployment as a whole.
    pub step: Option<&'a str>,
}

/// How specific a scope is; a greater one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank([bool; 5]);

impl Scope {
    /// Whether the value holds there.
    pub fn matches(&self, context: &Context<'_>) -> bool {
        let is = |names: &BTreeSet<String>, own: Option<&str>| {
            names.is_empty() || own.is_some_and(|own| names.contains(own))
        };
        let roles = context.target.map_or(&[][..], |target| &target.roles);
        is(&self.steps, context.step)
            && is(&self.targets, context.target.map(|target| target.name.as_str()))
            && (self.roles.is_empty() || roles.iter().any(|role| self.roles.contains(role)))
            && is(&self.tenants, context.tenant)
            && is(&self.environments, Some(context.environment))
    }

    /// Whether the value may hold somewhere in a deployment to this environment, for this tenant.
    pub fn concerns(&self, environment: &str, tenant: Option<&str>) -> bool {
        let whole = Self {
            environments: self.environments.clone(),
            tenants: self.tenants.clone(),
            ..Self::default()
        };
        whole.matches(&Context { environment, tenant, target: None, step: None })
    }

    /// How specific it is.
    pub fn rank(&self) -> Rank {
        let kinds = [&self.steps, &self.targets, &self.roles, &self.tenants, &self.environments];
        Rank(kinds.map(|names| !names.is_empty()))
    }

    /// Whether both have the same rank and match in one place for certain: a tie, whatever the targets.
    /// Two roles may be those of one target, but need not be.
    pub fn ties_with(&self, other: &Self) -> bool {
        let meet = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
            one.is_empty() || !one.is_disjoint(other)
        };
        self.rank() == other.rank()
            && meet(&self.environments, &other.environments)
            && meet(&self.roles, &other.roles)
            && meet(&self.targets, &other.targets)
            && meet(&self.steps, &other.steps)
            && meet(&self.tenants, &other.tenants)
    }
}

impl fmt::Display for Scope {
    /// For example `environment Test, role web or db`; `everywhere` when it names nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("step", &self.steps),
            ("target", &self.targets),
            ("role", &self.roles),
            ("tenant", &self.tenants),
            ("environment", &self.environments),
        ];
        let mut is_first = true;
        for (kind, names) in kinds.into_iter().filter(|(_, names)| !names.is_empty()) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let comma = if is_first { "" } else { ", " };
            write!(f, "{comma}{kind} {}", names.join(" or "))?;
            is_first = false;
        }
        if is_first { f.write_str("everywhere") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::plan::TargetKind;
    use crate::deploy::targets::Limits;
    use crate::deploy::variables::{Definition, ValueSource, Variables};
    use crate::trust::Fingerprint;

    /// `s:Deploy e:Test,Live`: kinds by their first letters, `n` for tenants.
    fn scope(text: &str) -> Scope {
        let mut scope = Scope::default();
        for part in text.split_whitespace() {
            let (kind, names) = part.split_once(':').unwrap();
            let names = names.split(',').map(str::to_owned).collect();
            match kind {
                "s" => scope.steps = names,
                "t" => scope.targets = names,
                "r" => scope.roles = names,
                "n" => scope.tenants = names,
                "e" => scope.environments = names,
                other => panic!("{other}"),
            }
        }
        scope
    }

    fn target() -> Target {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Target {
            name: "web-1".to_owned(),
            address: "web-1:1".to_owned(),
            fingerprint: Fingerprint::of(b"x"),
            kind: TargetKind::Machine,
            environments: words(&["Test"]),
            roles: words(&["web", "iis"]),
            tenants: words(&["acme"]),
            interpreters: Vec::new(),
            limits: Limits::default(),
        }
    }

    /// The scope that wins at step Deploy on target web-1 (roles web and iis) for tenant acme in environment Test.
    fn winner(scopes: &[&str], context: &Context<'_>) -> String {
        let definition = |text: &&str| Definition {
            key: String::new(),
            line: None,
            name: "A".to_owned(),
            scope: scope(text),
            source: ValueSource::Text((*text).to_owned()),
            is_sensitive: false,
        };
        let variables: Variables = scopes.iter().map(definition).collect();
        let text = |definition: &Definition| {
            let ValueSource::Text(text) = &definition.source else { unreachable!("made here") };
            text.clone()
        };
        match variables.find("A", context) {
            Ok(Some(definition)) => text(definition),
            Ok(None) => "none".to_owned(),
            Err((one, other)) => format!("tie {} | {}", text(one), text(other)),
        }
    }

    /// Values with these scopes, and the one that counts. Each row also holds with its values in the other order.
    const ROWS: &[(&[&str], &str)] = &[
        // One value: it holds or it does not.
        (&[], "none"),
        (&[""], ""),
        (&["e:Test"], "e:Test"),
        (&["e:Live"], "none"),
        (&["e:Live,Test"], "e:Live,Test"),
        (&["n:acme"], "n:acme"),
        (&["n:other"], "none"),
        (&["r:web"], "r:web"),
        (&["r:iis"], "r:iis"),
        (&["r:db"], "none"),
        (&["r:db,iis"], "r:db,iis"),
        (&["t:web-1"], "t:web-1"),
        (&["t:web-2"], "none"),
        (&["s:Deploy"], "s:Deploy"),
        (&["s:Check"], "none"),
        // A scope holds when all of its kinds do.
        (&["e:Test r:db"], "none"),
        (&["e:Live r:web"], "none"),
        (&["e:Test r:web n:acme t:web-1 s:Deploy"], "e:Test r:web n:acme t:web-1 s:Deploy"),
        (&["e:Test r:web n:acme t:web-1 s:Check"], "none"),
        // Any scope wins over none.
        (&["", "e:Test"], "e:Test"),
        (&["", "n:acme"], "n:acme"),
        (&["", "r:web"], "r:web"),
        (&["", "t:web-1"], "t:web-1"),
        (&["", "s:Deploy"], "s:Deploy"),
        (&["", "e:Live"], ""),
        // Kinds in their order.
        (&["e:Test", "n:acme"], "n:acme"),
        (&["n:acme", "r:web"], "r:web"),
        (&["r:web", "t:web-1"], "t:web-1"),
        (&["t:web-1", "s:Deploy"], "s:Deploy"),
        (&["e:Test", "s:Deploy"], "s:Deploy"),
        (&["e:Test", "n:acme", "r:web", "t:web-1", "s:Deploy"], "s:Deploy"),
        // The most specific kind decides, however many others there are.
        (&["s:Deploy", "e:Test n:acme r:web t:web-1"], "s:Deploy"),
        (&["t:web-1", "e:Test n:acme r:web"], "t:web-1"),
        (&["r:web", "e:Test n:acme"], "r:web"),
        (&["n:acme", "e:Test"], "n:acme"),
        // What is the same is decided by the next kind.
        (&["s:Deploy", "s:Deploy e:Test"], "s:Deploy e:Test"),
        (&["s:Deploy e:Test", "s:Deploy n:acme"], "s:Deploy n:acme"),
        (&["s:Deploy n:acme e:Test", "s:Deploy r:web"], "s:Deploy r:web"),
        (&["t:web-1 e:Test", "t:web-1 r:web"], "t:web-1 r:web"),
        (&["r:web e:Test", "r:web n:acme"], "r:web n:acme"),
        (&["r:web", "r:web e:Test"], "r:web e:Test"),
        (&["r:web e:Live", "r:web"], "r:web"),
        (&["t:web-1 r:db", "e:Test"], "e:Test"),
        // How many names a kind has does not matter: that is a tie.
        (&["e:Test", "e:Test,Live"], "tie e:Test | e:Test,Live"),
        (&["r:web", "r:iis"], "tie r:web | r:iis"),
        (&["r:web", "r:db"], "r:web"),
        (&["", ""], "tie  | "),
        (
            &["s:Deploy e:Test", "s:Deploy,Check e:Test"],
            "tie s:Deploy e:Test | s:Deploy,Check e:Test",
        ),
        // A tie below what wins is none.
        (&["r:web", "r:iis", "t:web-1"], "t:web-1"),
        (&["e:Test", "e:Test,Live", "n:acme"], "n:acme"),
        (&["r:web", "r:iis", "r:web e:Test"], "r:web e:Test"),
    ];

    #[test]
    fn the_most_specific_scope_wins() {
        assert!(ROWS.len() >= 40, "{}", ROWS.len());
        let target = target();
        let context = Context {
            environment: "Test",
            tenant: Some("acme"),
            target: Some(&target),
            step: Some("Deploy"),
        };
        for (scopes, expected) in ROWS {
            assert_eq!(winner(scopes, &context), *expected, "{scopes:?}");
            let turned: Vec<&str> = scopes.iter().rev().copied().collect();
            let expected = match expected.strip_prefix("tie ").and_then(|tie| tie.split_once(" | "))
            {
                Some((one, other)) => format!("tie {other} | {one}"),
                None => (*expected).to_owned(),
            };
            assert_eq!(winner(&turned, &context), expected, "{turned:?}");
        }
    }

    #[test]
    fn where_there_is_no_target_step_or_tenant_their_scopes_do_not_hold() {
        let context = Context { environment: "Test", tenant: None, target: None, step: None };
        for other in ["n:acme", "r:web", "t:web-1", "s:Deploy"] {
            assert_eq!(winner(&[other], &context), "none", "{other}");
            assert_eq!(winner(&[other, "e:Test", ""], &context), "e:Test", "{other}");
        }
        assert!(scope("t:x s:y r:z e:Test").concerns("Test", None));
        assert!(!scope("e:Live").concerns("Test", None));
        assert!(!scope("n:acme").concerns("Test", None));
        assert!(scope("n:acme").concerns("Test", Some("acme")));
    }

    #[test]
    fn a_tie_is_certain_when_all_kinds_meet() {
        for (one, other, tie) in [
            ("", "", true),
            ("e:Test", "e:Test,Live", true),
            ("e:Test", "e:Live", false),
            ("r:web", "r:iis", false),
            ("r:web", "e:Test", false),
            ("r:web e:Test", "r:web,db e:Test", true),
            ("r:web e:Test", "r:web e:Live", false),
        ] {
            assert_eq!(scope(one).ties_with(&scope(other)), tie, "{one} and {other}");
        }
        assert_eq!(scope("e:Test r:web,db").to_string(), "role db or web, environment Test");
        assert_eq!(scope("").to_string(), "everywhere");
    }
}
