//! The source checks itself: layers, sizes, module comments, what calls itself pure.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::match_wildcard_for_single_variants,
    reason = "syn's"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::Visit;

/// The modules from the user down to the disk. A module uses those behind it, never those before.
const LAYERS: [&str; 31] = [
    "cli",
    "doctor",
    "service",
    "deploy",
    "guard",
    "client",
    "rpc",
    "agent",
    "wire",
    "supervisor",
    "artifacts",
    "packages",
    "workspace",
    "upgrade",
    "transfer",
    "snapshot",
    "spec",
    "fleet",
    "mutex",
    "journal",
    "store",
    "trust",
    "config",
    "script",
    "values",
    "filewatch",
    "durable",
    "crash",
    "format",
    "process",
    "text",
];

/// The longest file, in lines without its tests.
const MAX_FILE_LINES: usize = 500;
/// The longest function, in lines.
const MAX_FUNCTION_LINES: usize = 70;
/// The longest gRPC handler, in lines.
const MAX_HANDLER_LINES: usize = 20;
/// The most arguments of a function, `self` included.
const MAX_ARGUMENTS: usize = 6;
/// Names that say nothing.
const EMPTY_NAMES: [&str; 7] = ["utils", "helpers", "common", "misc", "types", "manager", "imp"];

/// A file of the library, without its tests.
struct Source {
    path: PathBuf,
    text: String,
    file: syn::File,
}

impl Source {
    fn name(&self) -> String {
        self.path.strip_prefix("src").unwrap().display().to_string()
    }

    /// The layer that it belongs to; `lib.rs` and `main.rs` stand above all.
    fn layer(&self) -> Option<usize> {
        let name = self.path.strip_prefix("src").unwrap().components().next().unwrap();
        let name = name.as_os_str().to_str().unwrap().trim_end_matches(".rs");
        LAYERS.iter().position(|layer| *layer == name)
    }

    /// What the file's own comment says.
    fn comment(&self) -> String {
        let lines = self.text.lines().take_while(|line| line.starts_with("//!"));
        lines.map(|line| line.trim_start_matches("//!").trim()).collect::<Vec<_>>().join("\n")
    }
}

/// All files below `src`, with inline test modules taken out.
fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths.into_iter().filter(|path| !path.ends_with("tests.rs")).map(read).collect()
}

fn read(path: PathBuf) -> Source {
    let text = std::fs::read_to_string(&path).unwrap();
    let mut file = syn::parse_file(&text).unwrap();
    let is_test = |item: &syn::Item| match item {
        syn::Item::Mod(module) => module.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
        }),
        _ => false,
    };
    let tests = file.items.iter().find(|item| is_test(item)).map(|item| item.span().start().line);
    file.items.retain(|item| !is_test(item));
    let lines = tests.map_or(usize::MAX, |line| line - 1);
    let text = text.lines().take(lines).collect::<Vec<_>>().join("\n");
    Source { path, text, file }
}

fn tokens(source: &Source) -> TokenStream {
    source.text.parse().unwrap()
}

/// All tokens in order, as text, with groups opened.
fn flat(stream: TokenStream, into: &mut Vec<String>) {
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Parenthesis | Delimiter::Bracket | Delimiter::None => ("(", ")"),
                };
                into.push(open.to_owned());
                flat(group.stream(), into);
                into.push(close.to_owned());
            }
            other => into.push(other.to_string()),
        }
    }
}

/// The modules that a file names by `crate::`, also inside macros.
fn used(source: &Source) -> BTreeSet<String> {
    let mut words = Vec::new();
    flat(tokens(source), &mut words);
    let mut used = BTreeSet::new();
    for at in 0..words.len().saturating_sub(3) {
        if words[at] != "crate" || words[at + 1] != ":" || words[at + 2] != ":" {
            continue;
        }
        if words[at + 3] != "{" {
            used.insert(words[at + 3].clone());
            continue;
        }
        // `crate::{a, b::{c, d}}`: the first word of each part.
        let (mut depth, mut first) = (1, true);
        for word in &words[at + 4..] {
            match word.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                "," if depth == 1 => first = true,
                name if first => {
                    used.insert(name.to_owned());
                    first = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    used
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn a_module_uses_only_what_is_below_it() {
    let mut problems = Vec::new();
    for source in sources() {
        let Some(own) = source.layer() else {
            continue;
        };
        for name in used(&source) {
            match LAYERS.iter().position(|layer| *layer == name) {
                Some(layer) if layer >= own => {}
                Some(_) => problems.push(format!("{} uses {name}, above it", source.name())),
                None => problems.push(format!("{} uses {name}, no layer", source.name())),
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn the_map_in_lib_rs_is_the_order_of_the_layers() {
    let lib = read(PathBuf::from("src/lib.rs"));
    let comment = lib.comment();
    let rows = comment.lines().filter_map(|line| line.strip_prefix("| [`"));
    let map: Vec<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    assert_eq!(map, LAYERS);
    let modules: BTreeSet<String> = lib.file.items.iter().filter_map(module_name).collect();
    assert_eq!(modules, LAYERS.map(str::to_owned).into());
}

fn module_name(item: &syn::Item) -> Option<String> {
    match item {
        syn::Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources().into_iter().filter(|source| source.comment().len() < 20);
    let mut problems: Vec<_> = silent.map(|s| format!("{}: no //!", s.name())).collect();
    for entry in std::fs::read_dir("tests").unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !std::fs::read_to_string(&path).unwrap().starts_with("//! ") {
            problems.push(format!("{}: no //!", path.display()));
        }
    }
    assert_none(&problems);
}

#[test]
fn no_file_is_too_long_and_none_has_an_empty_name() {
    let mut problems = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > MAX_FILE_LINES {
            problems.push(format!("{}: {lines} lines", source.name()));
        }
        let parts = source.path.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs"));
        if parts.clone().any(|part| EMPTY_NAMES.contains(&part)) {
            problems.push(format!("{}: a name that says nothing", source.name()));
        }
    }
    assert_none(&problems);
}

/// Looks at every function of a file.
struct Functions<'a> {
    file: String,
    /// Whether they are the handlers of a gRPC service.
    are_handlers: bool,
    problems: &'a mut Vec<String>,
}

impl Functions<'_> {
    fn check(&mut self, signature: &syn::Signature, whole: proc_macro2::Span) {
        let lines = whole.end().line - signature.span().start().line + 1;
        let limit = if self.are_handlers { MAX_HANDLER_LINES } else { MAX_FUNCTION_LINES };
        let name = &signature.ident;
        if lines > limit {
            self.problems.push(format!("{} {name}: {lines} lines of {limit}", self.file));
        }
        let arguments = signature.inputs.len();
        if arguments > MAX_ARGUMENTS {
            self.problems.push(format!("{} {name}: {arguments} arguments", self.file));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check(&function.sig, function.span());
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let is_service =
            |a: &syn::Attribute| a.path().segments.last().unwrap().ident == "async_trait";
        self.are_handlers = item.attrs.iter().any(is_service);
        syn::visit::visit_item_impl(self, item);
        self.are_handlers = false;
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.check(&function.sig, function.span());
        syn::visit::visit_impl_item_fn(self, function);
    }
}

#[test]
fn no_function_is_too_long_or_has_too_many_arguments() {
    let mut problems = Vec::new();
    for source in sources() {
        let (file, problems) = (source.name(), &mut problems);
        let mut functions = Functions { file, are_handlers: false, problems };
        functions.visit_file(&source.file);
    }
    assert_none(&problems);
}

#[test]
fn what_is_pure_does_no_io_and_asks_no_clock() {
    // As a part of a path, before `::`.
    let forbidden = ["fs", "net", "process", "env", "File", "OpenOptions", "rustix"];
    let mut problems = Vec::new();
    let mut count = 0;
    for source in sources().iter().filter(|source| source.comment().starts_with("Pure:")) {
        count += 1;
        let mut words = Vec::new();
        flat(tokens(source), &mut words);
        for (at, word) in words.iter().enumerate() {
            let is_path = words.get(at + 1).is_some_and(|next| next == ":")
                && words.get(at + 2).is_some_and(|next| next == ":");
            let clock = word == "now" && at > 1 && words[at - 2..at] == [":", ":"];
            if clock || word == "async" || (is_path && forbidden.contains(&word.as_str())) {
                problems.push(format!("{}: {word}", source.name()));
            }
        }
    }
    assert!(count > 5, "only {count} files are pure");
    assert_none(&problems);
}

/// What must be nowhere, as tokens in a row, and why.
const BANNED: [(&[&str], &str); 4] = [
    (&["pre_exec"], "the standard library then forks, which costs more the more memory there is"),
    (&["fork", "("], "it costs more the more memory there is"),
    (&["waitpid", "(", "-", "1"], "it takes exit statuses from others in the same process"),
    (&["waitpid", "(", "None"], "it takes exit statuses from others in the same process"),
];

/// The one place of a word that is banned: a small process, and only where its caller ignores SIGPIPE,
/// which the standard library takes from each command in no other way.
const EXEMPT: (&str, &str) = ("mutex/unix.rs", "pre_exec");

#[test]
fn nothing_is_forked_or_reaped_but_by_its_own_id() {
    let mut problems = Vec::new();
    for source in sources() {
        let mut words = Vec::new();
        flat(tokens(&source), &mut words);
        for (banned, why) in BANNED {
            if (source.name(), banned.concat()) == (EXEMPT.0.into(), EXEMPT.1.into()) {
                continue;
            }
            if words.windows(banned.len()).any(|row| row == banned) {
                problems.push(format!("{}: {}: {why}", source.name(), banned.concat()));
            }
        }
        // In a string: moving a process by it takes a lock of the whole machine.
        if words.iter().any(|word| word.contains("cgroup.procs")) {
            problems.push(format!("{}: cgroup.procs", source.name()));
        }
    }
    assert_none(&problems);
}

#[test]
fn every_promise_of_the_readme_names_a_test_that_is_there() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let section = readme.split("## Promises").nth(1).unwrap().split("\n## ").next().unwrap();
    let numbered: Vec<&str> = section
        .lines()
        .filter(|line| line.split_once(". ").is_some_and(|(n, _)| n.parse::<u32>().is_ok()))
        .collect();
    assert!(numbered.len() >= 10, "{} promises", numbered.len());
    let mut missing = Vec::new();
    let cited = section.split('`').filter(|word| word.starts_with("tests/"));
    for cited in cited {
        let (path, test) = cited.split_once("::").unwrap_or((cited, ""));
        let source = std::fs::read_to_string(path).unwrap_or_default();
        // A file of checks on a real systemd is one test, with its own comment.
        let is_script = path.starts_with("tests/systemd/") && source.starts_with('#');
        if !is_script && (source.is_empty() || !source.contains(&format!("fn {test}"))) {
            missing.push(format!("README.md names {cited}, which is not there"));
        }
    }
    assert_none(&missing);
}
