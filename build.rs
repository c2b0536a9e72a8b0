//! Compiles `proto/` with protox, in pure Rust: no protoc is needed on the machine.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

#[expect(
    clippy::disallowed_methods,
    reason = "a build script writes into OUT_DIR; a crash rebuilds it"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
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
