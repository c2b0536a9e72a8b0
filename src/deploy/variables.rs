//! Pure: the variables of a project: where each value holds, and what it is.
//!
//! Which of several values counts is told by [`super::scope`]; `#{Name}` in a value is the value of another
//! variable at the same place. A script finds a variable in its environment under the name that
//! [`environment_name`] gives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::document::Places;
use super::problem::{Problem, Problems, did_you_mean};
use super::project::Project;
use super::project_file::{Names, Scalar, ScopeTable, VariableTable};
use super::scope::{Context, Scope};
use super::special;
use super::targets::check_word;
use super::template::{self, Part};
use super::value::Value;
use crate::script::variable;
use crate::spec::MAX_ARGUMENT_BYTES;

/// How the environment variables begin in which scripts find variables.
pub const PREFIX: &str = "VAR_";
/// The longest name of a variable, in bytes.
pub const MAX_NAME_BYTES: usize = 200;
/// How deep values may refer to each other.
const MAX_DEPTH: usize = 64;

/// The name of a variable in a script's environment: `VAR_` and the name in capitals, with `_` for
/// everything that is no letter and no digit. `Db.Port` becomes `VAR_DB_PORT`.
pub fn environment_name(name: &str) -> String {
    format!("{PREFIX}{}", variable(name))
}

/// Values that the deployment itself gives.
pub mod built_in {
    /// The project's name.
    pub const PROJECT: &str = "Octopus.Project.Name";
    /// The environment's name.
    pub const ENVIRONMENT: &str = "Octopus.Environment.Name";
    /// The tenant's name; not there without a tenant.
    pub const TENANT: &str = "Octopus.Deployment.Tenant.Name";
    /// The release; not there without `--release`.
    pub const RELEASE: &str = "Octopus.Release.Number";
    /// The target's name; not there for the deployment as a whole.
    pub const TARGET: &str = "Octopus.Machine.Name";
    /// The step's name; not there for the deployment as a whole.
    pub const STEP: &str = "Octopus.Step.Name";

    /// All of them.
    pub const ALL: [&str; 6] = [PROJECT, ENVIRONMENT, TENANT, RELEASE, TARGET, STEP];
}

/// The variables of a project.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Variables(Vec<Definition>);

/// A value of a variable, and where it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Its key in the file.
    pub key: String,
    /// Its line in the file.
    pub line: Option<usize>,
    /// The variable's name.
    pub name: String,
    /// Where it holds.
    pub scope: Scope,
    /// Where its value is.
    pub source: ValueSource,
    /// Whether it is a secret.
    pub is_sensitive: bool,
}

/// Where a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueSource {
    /// Here; variables may stand in it.
    Text(String),
    /// In a file, relative to the project file's folder unless absolute.
    File(PathBuf),
    /// In an environment variable of the orchestrator.
    Environment(String),
    /// It was read from where it was. It is taken as it is: no variable stands in it.
    Read(Value),
}

impl Variables {
    /// Checks the variables of the file.
    pub(super) fn check(
        tables: Vec<VariableTable>,
        places: &Places,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut definitions = Vec::new();
        for (at, table) in tables.into_iter().enumerate() {
            let key = format!("variables[{at}]");
            match Definition::check(key, table, places) {
                Ok(definition) => definitions.push(definition),
                Err(problem) => problems.push(problem),
            }
        }
        Self(definitions)
    }

    /// Checks what is said about the project's other names.
    pub(super) fn check_names(&self, project: &Project, problems: &mut Vec<Problem>) {
        let steps = || project.steps.iter().map(|step| step.name.as_str());
        for definition in &self.0 {
            for step in &definition.scope.steps {
                if !steps().any(|name| name == step) {
                    let key = format!("{}.scope.step", definition.key);
                    let problem = project.places.problem(key, format!("there is no step {step:?}"));
                    problems.push(problem.hint(did_you_mean(step, steps())));
                }
            }
            problems.extend(special::check(definition, project));
        }
        self.check_ties(project, problems);
        self.check_environment_names(project, problems);
    }

    /// Two values that hold at the same places are a tie, whatever the targets are.
    fn check_ties(&self, project: &Project, problems: &mut Vec<Problem>) {
        for (at, definition) in self.0.iter().enumerate() {
            let tied = self.0[..at].iter().find(|earlier| {
                earlier.name == definition.name && earlier.scope.ties_with(&definition.scope)
            });
            problems.extend(tied.map(|earlier| tie(project, earlier, definition)));
        }
    }

    /// Two variables that are the same one in a script's environment.
    fn check_environment_names(&self, project: &Project, problems: &mut Vec<Problem>) {
        let mut seen = BTreeMap::<String, &Definition>::new();
        for definition in &self.0 {
            let name = environment_name(&definition.name);
            let earlier = seen.entry(name.clone()).or_insert(definition);
            if earlier.name != definition.name {
                let message = format!(
                    "{:?} and {:?}{} are both {name} in a script's environment",
                    definition.name,
                    earlier.name,
                    of_line(earlier)
                );
                let key = format!("{}.name", definition.key);
                problems.push(project.places.problem(key, message));
            }
        }
    }

    /// All values of all variables, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Definition> {
        self.0.iter()
    }

    /// The same, to be filled in.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Definition> {
        self.0.iter_mut()
    }

    /// The names of all variables.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|definition| definition.name.as_str()).collect()
    }

    /// The value that counts at a place: the one with the most specific scope. `None`: none holds there.
    ///
    /// # Errors
    /// Both of two that are equally specific.
    pub fn find(
        &self,
        name: &str,
        context: &Context<'_>,
    ) -> Result<Option<&Definition>, (&Definition, &Definition)> {
        let holds =
            |definition: &&Definition| definition.name == name && definition.scope.matches(context);
        let mut best: Vec<&Definition> = Vec::new();
        for definition in self.0.iter().filter(holds) {
            match best.first().map(|first| first.scope.rank().cmp(&definition.scope.rank())) {
                Some(std::cmp::Ordering::Greater) => {}
                Some(std::cmp::Ordering::Equal) => best.push(definition),
                Some(std::cmp::Ordering::Less) | None => best = vec![definition],
            }
        }
        match best.as_slice() {
            [one, other, ..] => Err((one, other)),
            one => Ok(one.first().copied()),
        }
    }
}

impl FromIterator<Definition> for Variables {
    fn from_iter<I: IntoIterator<Item = Definition>>(definitions: I) -> Self {
        Self(definitions.into_iter().collect())
    }
}

fn of_line(definition: &Definition) -> String {
    definition.line.map(|line| format!(" (line {line})")).unwrap_or_default()
}

/// Two values, of which neither is more specific.
fn tie(project: &Project, one: &Definition, other: &Definition) -> Problem {
    let message = format!(
        "{:?} has two values that are equally specific: for {}{}, and for {}{}",
        other.name,
        one.scope,
        of_line(one),
        other.scope,
        of_line(other)
    );
    let hint = "name one more kind in the scope of the one that is to win".to_owned();
    project.places.problem(format!("{}.scope", other.key), message).hint(hint)
}

impl Definition {
    fn check(key: String, table: VariableTable, places: &Places) -> Result<Self, Problem> {
        let VariableTable { name, value, value_file, value_env, sensitive, scope } = table;
        let refuse = |field: &str, message: String| {
            let key = if field.is_empty() { key.clone() } else { format!("{key}.{field}") };
            places.problem(key, message)
        };
        let is_whole = check_word(&name).is_ok() && name.len() <= MAX_NAME_BYTES;
        if !is_whole || name.contains(['{', '}', '=']) || !name.contains(char::is_alphanumeric) {
            let rule =
                format!("1 to {MAX_NAME_BYTES} bytes without {{ }} = and control characters");
            return Err(refuse("name", format!("is {name:?}, but must be {rule}")));
        }
        if built_in::ALL.contains(&name.as_str()) {
            return Err(refuse("name", format!("{name:?} is given by the deployment itself")));
        }
        let source = match (value, value_file, value_env) {
            (Some(_), None, None) if sensitive => {
                let problem = refuse("value", "a secret does not belong into this file".to_owned());
                let hint = "use `value_env = \"NAME\"` or `value_file = \"PATH\"`".to_owned();
                return Err(problem.hint(hint));
            }
            (Some(value), None, None) => ValueSource::Text(match value {
                Scalar::Text(text) => text,
                Scalar::Boolean(true) => "True".to_owned(),
                Scalar::Boolean(false) => "False".to_owned(),
                Scalar::Number(number) => number.to_string(),
            }),
            (None, Some(path), None) if !path.is_empty() => ValueSource::File(path.into()),
            (None, None, Some(variable)) if !variable.is_empty() && !variable.contains('=') => {
                ValueSource::Environment(variable)
            }
            (None, Some(_), None) => return Err(refuse("value_file", "is empty".to_owned())),
            (None, None, Some(_)) => {
                return Err(refuse(
                    "value_env",
                    "is no name of an environment variable".to_owned(),
                ));
            }
            (None, None, None) => {
                let text = "needs a value: `value`, `value_file` or `value_env`";
                return Err(refuse("", text.to_owned()));
            }
            _ => {
                let text = "has more than one of `value`, `value_file` and `value_env`";
                return Err(refuse("", text.to_owned()));
            }
        };
        if let ValueSource::Text(text) = &source
            && let Err(error) = template::parts(text)
        {
            return Err(refuse("value", error.to_string()));
        }
        let scope = check_scope(scope)
            .map_err(|(kind, message)| refuse(&format!("scope.{kind}"), message))?;
        let line = places.line(&key);
        Ok(Self { key, line, name, scope, source, is_sensitive: sensitive })
    }
}

fn check_scope(table: ScopeTable) -> Result<Scope, (&'static str, String)> {
    let names = |kind: &'static str, names: Option<Names>| {
        let names = match names {
            None => return Ok(BTreeSet::new()),
            Some(Names::One(name)) => vec![name],
            Some(Names::Several(names)) => names,
        };
        // An empty list could mean everywhere or nowhere.
        if names.is_empty() {
            return Err((kind, "is empty; leave it out when it holds for all".to_owned()));
        }
        for name in &names {
            check_word(name).map_err(|message| (kind, message))?;
        }
        Ok(names.into_iter().collect())
    };
    Ok(Scope {
        environments: names("environment", table.environment)?,
        roles: names("role", table.role)?,
        targets: names("target", table.target)?,
        steps: names("step", table.step)?,
        tenants: names("tenant", table.tenant)?,
    })
}

/// What the variables are at one place.
#[derive(Debug)]
pub struct Values<'a> {
    project: &'a Project,
    context: Context<'a>,
    release: Option<&'a str>,
    known: BTreeMap<String, Value>,
    /// Those that are being worked out, the outermost first.
    open: Vec<String>,
}

impl<'a> Values<'a> {
    /// The variables of a project at a place.
    pub fn new(project: &'a Project, context: Context<'a>, release: Option<&'a str>) -> Self {
        Self { project, context, release, known: BTreeMap::new(), open: Vec::new() }
    }

    /// Where this is.
    pub fn context(&self) -> &Context<'a> {
        &self.context
    }

    /// The project whose variables these are.
    pub fn project(&self) -> &'a Project {
        self.project
    }

    /// What the deployment itself gives.
    fn built_in(&self, name: &str) -> Option<&'a str> {
        match name {
            built_in::PROJECT => Some(&self.project.name),
            built_in::ENVIRONMENT => Some(self.context.environment),
            built_in::TENANT => self.context.tenant,
            built_in::RELEASE => self.release,
            built_in::TARGET => self.context.target.map(|target| target.name.as_str()),
            built_in::STEP => self.context.step,
            _ => None,
        }
    }

    /// A variable's value; `None`: it has none here.
    ///
    /// # Errors
    /// When two values are equally specific, or the value refers to itself, to nothing, or is too long.
    pub fn get(&mut self, name: &str) -> Result<Option<Value>, Problem> {
        if let Some(value) = self.built_in(name) {
            return Ok(Some(Value::plain(value)));
        }
        if let Some(value) = self.known.get(name) {
            return Ok(Some(value.clone()));
        }
        let found = self.project.variables.find(name, &self.context);
        let Some(definition) = found.map_err(|(one, other)| tie(self.project, one, other))? else {
            return Ok(None);
        };
        let key = format!("{}.value", definition.key);
        let refuse = |message: String| self.project.places.problem(&key, message);
        if self.open.iter().any(|open| open == name) {
            let chain = self.open.iter().map(String::as_str).skip_while(|open| *open != name);
            let chain: Vec<&str> = chain.chain([name]).collect();
            return Err(refuse(format!("refers to itself: {}", chain.join(" → "))));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(refuse(format!("is nested deeper than {MAX_DEPTH}")));
        }
        let value = match &definition.source {
            ValueSource::Read(value) => value.clone(),
            ValueSource::Text(text) => {
                self.open.push(name.to_owned());
                let value = self.expand(&key, text);
                self.open.pop();
                value?
            }
            ValueSource::File(path) => {
                return Err(refuse(format!("file {} was not read", path.display())));
            }
            ValueSource::Environment(variable) => {
                return Err(refuse(format!("environment variable {variable} was not read")));
            }
        };
        self.known.insert(name.to_owned(), value.clone());
        Ok(Some(value))
    }

    /// A text with all variables replaced; `key` is where it stands.
    ///
    /// # Errors
    /// When a variable has no value here, or what [`Self::get`] refuses.
    pub fn expand(&mut self, key: &str, text: &str) -> Result<Value, Problem> {
        let refuse = |message: String| self.project.places.problem(key, message);
        let parts = template::parts(text).map_err(|error| refuse(error.to_string()))?;
        let mut expanded = Value::plain("");
        for part in parts {
            match part {
                Part::Literal(text) => expanded.push_str(text),
                Part::Reference(name) => match self.get(name)? {
                    Some(value) => expanded.push(&value),
                    None => return Err(self.unknown(key, name)),
                },
            }
            if expanded.expose().len() > MAX_ARGUMENT_BYTES {
                return Err(self
                    .project
                    .places
                    .problem(key, format!("becomes longer than {MAX_ARGUMENT_BYTES} bytes")));
            }
        }
        if expanded.expose().contains('\0') {
            return Err(self.project.places.problem(key, "has a NUL"));
        }
        Ok(expanded)
    }

    fn unknown(&self, key: &str, name: &str) -> Problem {
        let problem = |message: String| self.project.places.problem(key, message);
        if name == built_in::RELEASE {
            let message = format!("#{{{name}}} has no value without a release");
            return problem(message).hint("give --release".to_owned());
        }
        let names = self.project.variables.names();
        if names.contains(name) {
            let message = format!("#{{{name}}} has no value for {}", self.place());
            let hint = "give it a value without a scope".to_owned();
            return problem(message).hint(hint);
        }
        let known = names.into_iter().chain(built_in::ALL);
        problem(format!("#{{{name}}} is not known")).hint(did_you_mean(name, known))
    }

    /// This place, for people.
    pub fn place(&self) -> String {
        let Context { environment, tenant, target, step } = self.context;
        let parts = [
            step.map(|step| format!("step {step:?}")),
            target.map(|target| format!("target {}", target.name)),
            tenant.map(|tenant| format!("tenant {tenant}")),
            Some(format!("environment {environment}")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// All that have a value here, by their names in a script's environment.
    ///
    /// # Errors
    /// Each that [`Self::get`] refuses.
    pub fn environment(&mut self) -> Result<BTreeMap<String, Value>, Problems> {
        let mut problems = Vec::new();
        let mut all = BTreeMap::new();
        let names = self.project.variables.names().into_iter().chain(built_in::ALL);
        for name in names {
            match self.get(name) {
                Ok(Some(value)) => drop(all.insert(environment_name(name), value)),
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        Problems::none_of(problems)?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(variables: &str) -> Project {
        Project::parse("deploy.toml", &format!("project = 'web'\n{variables}")).unwrap()
    }

    fn here(project: &Project) -> Values<'_> {
        let context = Context { environment: "Test", tenant: None, target: None, step: None };
        Values::new(project, context, Some("1.2"))
    }

    fn refused(variables: &str) -> Vec<String> {
        let text = format!("project = 'web'\n{variables}");
        let problems = Project::parse("deploy.toml", &text).unwrap_err();
        problems.iter().map(|p| format!("{} {}: {}", p.line.unwrap(), p.key, p.message)).collect()
    }

    /// Variables of a name and a value, one a line.
    fn table(values: &[(&str, &str)]) -> String {
        let one = |(name, value): &(&str, &str)| {
            format!("[[variables]]\nname = '{name}'\nvalue = '{value}'\n")
        };
        values.iter().map(one).collect()
    }

    #[test]
    fn values_refer_to_each_other_and_to_what_the_deployment_gives() {
        let project = project(&table(&[
            ("Host", "db.#{Zone}"),
            ("Zone", "#{Octopus.Environment.Name}.local"),
            ("Url", "pg://#{Host}:5432/#{ Octopus.Project.Name }?v=#{Octopus.Release.Number}"),
            ("Plain", "##{Host}"),
        ]));
        let mut values = here(&project);
        let mut text = |name| values.get(name).unwrap().map(|value| value.expose().to_owned());
        assert_eq!(text("Url").unwrap(), "pg://db.Test.local:5432/web?v=1.2");
        assert_eq!(text("Plain").unwrap(), "#{Host}");
        assert_eq!(text("None"), None);
        assert_eq!(text(built_in::TARGET), None);
        let environment = values.environment().unwrap();
        let names: Vec<_> = environment.keys().map(String::as_str).collect();
        let expected = [
            "VAR_HOST",
            "VAR_OCTOPUS_ENVIRONMENT_NAME",
            "VAR_OCTOPUS_PROJECT_NAME",
            "VAR_OCTOPUS_RELEASE_NUMBER",
            "VAR_PLAIN",
            "VAR_URL",
            "VAR_ZONE",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_cycle_is_told_with_its_chain_and_an_unknown_name_with_a_near_one() {
        let project = project(&table(&[
            ("A", "#{B}"),
            ("B", "x#{C}"),
            ("C", "#{A}"),
            ("D", "#{Prot}"),
            ("Port", "1"),
            ("E", "#{Octopus.Machine.Nam}"),
        ]));
        let mut values = here(&project);
        let mut error = |name| values.get(name).unwrap_err();
        let cycle = error("B");
        assert_eq!(cycle.message, "refers to itself: B → C → A → B");
        assert_eq!((cycle.line, cycle.key.as_str()), (Some(7), "variables[1].value"));
        assert_eq!(error("D").message, "#{Prot} is not known");
        assert_eq!(error("D").hint.as_deref(), Some("did you mean \"Port\"?"));
        assert_eq!(error("E").hint.as_deref(), Some("did you mean \"Octopus.Machine.Name\"?"));
        // All of them, not only the first.
        assert_eq!(values.environment().unwrap_err().iter().count(), 5);
    }

    #[test]
    fn a_value_neither_grows_nor_nests_without_end() {
        let name = |n: usize| format!("V{n}");
        let twice = |n: usize| format!("#{{V{n}}}#{{V{n}}}");
        let grow: Vec<_> = (0..40).map(|n| (name(n), twice(n + 1))).collect();
        let deep: Vec<_> = (0..100).map(|n| (name(n), format!("#{{V{}}}", n + 1))).collect();
        for (mut values, last, expected) in
            [(grow, "xxxxxxxx", "becomes longer than"), (deep, "x", "is nested deeper than")]
        {
            values.push((name(values.len()), last.to_owned()));
            let values: Vec<_> = values.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            let project = project(&table(&values));
            let error = here(&project).get("V0").unwrap_err();
            assert!(error.message.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn what_holds_a_secret_is_one_and_shown_nowhere() {
        let mut project = project(
            "[[variables]]\nname = 'Password'\nvalue_env = 'X'\nsensitive = true\n\
             [[variables]]\nname = 'Url'\nvalue = 'pg://web:#{Password}@db'\n",
        );
        let error = here(&project).get("Url").unwrap_err();
        assert_eq!(error.message, "environment variable X was not read");
        for definition in project.variables.iter_mut().take(1) {
            // A value from elsewhere is taken as it is.
            definition.source = ValueSource::Read(Value::sensitive("hunter2#{Url}"));
        }
        let mut values = here(&project);
        let url = values.get("Url").unwrap().unwrap();
        assert_eq!(url.expose(), "pg://web:hunter2#{Url}@db");
        assert!(url.is_sensitive());
        let shown = format!("{url:?}{url}{values:?}{project:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_is_wrong_with_a_definition_is_told() {
        for (fields, expected) in [
            ("name = ''\nvalue = 1", "3 variables[0].name: is \"\", but must be"),
            ("name = 'a{b'\nvalue = 1", "3 variables[0].name: is \"a{b\", but must be"),
            ("name = '..'\nvalue = 1", "3 variables[0].name: is \"..\", but must be"),
            ("name = 'a'", "2 variables[0]: needs a value"),
            ("name = 'a'\nvalue = 1\nvalue_env = 'X'", "2 variables[0]: has more than one"),
            ("name = 'a'\nvalue_env = ''", "4 variables[0].value_env: is no name"),
            ("name = 'a'\nvalue_file = ''", "4 variables[0].value_file: is empty"),
            ("name = 'a'\nvalue = 'x'\nsensitive = true", "4 variables[0].value: a secret does"),
            ("name = 'a'\nvalue = '#{x'", "4 variables[0].value: has `#{` without `}`"),
            ("name = 'a'\nvalue = 1\nscope.role = []", "5 variables[0].scope.role: is empty"),
            ("name = 'a'\nvalue = 1\nscope.tenant = ''", "5 variables[0].scope.tenant: is empty"),
            (
                "name = 'Octopus.Machine.Name'\nvalue = 1",
                "3 variables[0].name: \"Octopus.Machine.N",
            ),
        ] {
            let told = refused(&format!("[[variables]]\n{fields}\n"));
            assert!(told.len() == 1 && told[0].starts_with(expected), "{fields}: {told:?}");
        }
    }

    #[test]
    fn a_tie_names_both_with_their_lines() {
        let certain = "[[variables]]\nname = 'A'\nvalue = 1\nscope.environment = 'Test'\n\
                       [[variables]]\nname = 'A'\nvalue = 1\nscope.environment = ['Test', 'B']\n";
        let expected = "9 variables[1].scope: \"A\" has two values that are equally specific: for \
                        environment Test (line 2), and for environment B or Test (line 6)";
        assert_eq!(refused(certain), [expected]);
        let same = table(&[("a.b", "x"), ("a_b", "y")]);
        assert!(refused(&same)[0].contains("are both VAR_A_B in a script's environment"));
        assert_eq!(environment_name("Db.Port[1] x"), "VAR_DB_PORT_1__X");
    }
}
