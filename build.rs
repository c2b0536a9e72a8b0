//! Compiles `proto/` with protox, in pure Rust: no protoc is needed on the machine. Links the unwinder in.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;

#[expect(
    clippy::disallowed_methods,
    reason = "a build script writes into OUT_DIR; a crash rebuilds it"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    link_unwinder();
    let descriptors = protox::compile(
        [
            "baton/v1/script.proto",
            "baton/v1/agent.proto",
            "baton/v1/file.proto",
            "baton/v1/lease.proto",
            "baton/v1/package.proto",
        ],
        ["proto"],
    )?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".baton.v1.Output.data")
        .bytes(".baton.v1.ScriptSpec.body")
        .bytes(".baton.v1.ScriptFile.content")
        .bytes(".baton.v1.UploadRequest.data")
        .bytes(".baton.v1.UpgradeRequest.data")
        .bytes(".baton.v1.DownloadResponse.data")
        .bytes(".baton.v1.DownloadArtifactResponse.data")
        .bytes(".baton.v1.SendPackageRequest.manifest")
        .bytes(".baton.v1.SendPackageRequest.chunk")
        .compile_fds(descriptors)?;
    // Apart: the agent's reflection tells of its own services only.
    let etcd = protox::compile(["etcd/etcd.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(etcd)?;
    Ok(())
}

/// Takes the unwinder from gcc's static library where there is one: to find and map `libgcc_s.so` is a
/// tenth of what `baton mutex run` takes. The standard library names the shared one, behind this.
fn link_unwinder() {
    let is = |key, value| std::env::var(key).is_ok_and(|found| found == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    let compiler = std::env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let found = Command::new(compiler).arg("-print-file-name=libgcc_eh.a").output();
    let path = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    // Of a file that it can't find it prints the name alone.
    if path.is_ok_and(|path| Path::new(&path).is_absolute()) {
        println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
    }
}
