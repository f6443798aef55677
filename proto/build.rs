//! Compiles the .proto files with protox (pure Rust: a new machine has no protoc). Client and server code only with feature `net`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["spec", "link", "grid"].map(|f| format!("proto/intergrid/v1/{f}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    let net = std::env::var_os("CARGO_FEATURE_NET").is_some();
    tonic_prost_build::configure()
        .build_client(net)
        .build_server(net)
        .bytes(".intergrid.v1.BlobPart.data")
        .bytes(".intergrid.v1.OutputPart.data")
        .bytes(".intergrid.v1.Place.spec")
        .compile_fds(descriptors)?;
    Ok(())
}
