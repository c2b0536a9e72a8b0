//! Versions of the program for tests of upgrades: real programs, with real keys and signatures.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::Digest as _;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::{BATON, World, finish, write};

/// A key of minisign.
pub struct Signer {
    pair: Ed25519KeyPair,
    id: [u8; 8],
}

impl Signer {
    pub fn new(id: u8) -> Self {
        let seed: [u8; 32] = std::array::from_fn(|at| id.wrapping_add(u8::try_from(at).unwrap()));
        let seed = blake2::Blake2b512::digest([seed.as_slice(), &unique()].concat());
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed[..32]).unwrap();
        Self { pair, id: [id; 8] }
    }

    /// As in the last line of minisign.pub.
    pub fn public(&self) -> String {
        STANDARD.encode([b"Ed".as_slice(), &self.id, self.pair.public_key().as_ref()].concat())
    }

    /// Writes the signature of a file beside it.
    pub fn sign(&self, program: &Path) {
        let content = std::fs::read(program).unwrap();
        self.write(program, b"ED", &blake2::Blake2b512::digest(content));
    }

    /// The same in the legacy format.
    pub fn sign_legacy(&self, program: &Path) {
        let content = std::fs::read(program).unwrap();
        self.write(program, b"Ed", &content);
    }

    fn write(&self, program: &Path, algorithm: &[u8], signed: &[u8]) {
        let signature = self.pair.sign(signed);
        let comment = "timestamp:1795000000\tfile:baton";
        let global = self.pair.sign(&[signature.as_ref(), comment.as_bytes()].concat());
        let line = STANDARD.encode([algorithm, &self.id, signature.as_ref()].concat());
        let text = format!(
            "untrusted comment: signature of a test\n{line}\ntrusted comment: {comment}\n{}\n",
            STANDARD.encode(global.as_ref())
        );
        write(&program.with_extension("minisig"), &text);
    }
}

fn unique() -> [u8; 16] {
    uuid::Uuid::now_v7().into_bytes()
}

/// The program, without what a debugger wants of it: it is sent often.
pub fn install(world: &World, name: &str) -> PathBuf {
    let program = world.path(name);
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    let strip = Command::new("strip").arg("-o").arg(&program).arg(BATON).status();
    if !strip.is_ok_and(|status| status.success()) {
        std::fs::copy(BATON, &program).unwrap();
    }
    program
}

/// Another version of an installed program: its number, of the same length, is another one wherever it stands.
pub fn version(world: &World, of: &Path, number: &str) -> PathBuf {
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(own.len(), number.len());
    let mut content = std::fs::read(of).unwrap();
    let places = memchr::memmem::find_iter(&content, own.as_bytes()).collect::<Vec<_>>();
    for place in places {
        content[place..place + own.len()].copy_from_slice(number.as_bytes());
    }
    let program = make(world, &format!("baton-{}", number.replace('.', "-")), &content);
    let said = finish(Command::new(&program).arg("--version"));
    assert_eq!(said.1, format!("baton {number}\n"), "{said:?}");
    program
}

/// A real program that says this version and else does what `main` says in Rust, compiled here.
pub fn other(world: &World, number: &str, main: &str) -> PathBuf {
    let source = world.path("other.rs");
    write(
        &source,
        &format!(
            "fn main() {{\n\
                 let words: Vec<String> = std::env::args().collect();\n\
                 if words.get(1).map(String::as_str) == Some(\"--version\") {{\n\
                     println!(\"baton {number}\");\n\
                     return;\n\
                 }}\n\
                 {main}\n\
             }}\n"
        ),
    );
    let program = world.path("baton-other");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let mut compile = Command::new(rustc);
    compile.args(["--edition", "2024", "-A", "warnings", "-o"]).arg(&program).arg(&source);
    let (code, _, error) = finish(&mut compile);
    assert_eq!(code, 0, "{error}");
    program
}

/// Writes a program. Another process does: whatever another test starts just then would have it open until its own
/// program begins, and the system starts nothing that is open for writing.
pub fn make(world: &World, name: &str, content: &[u8]) -> PathBuf {
    let (program, written) = (world.path(name), world.path(&format!("{name}.written")));
    baton::durable::replace_file(&written, content, 0o600).unwrap();
    let copied = Command::new("install").arg("--mode=755").arg(&written).arg(&program).status();
    assert!(copied.unwrap().success());
    std::fs::remove_file(written).unwrap();
    program
}
