//! The image: the program, CA certificates and a user, in the image layout of the Open Container Initiative (OCI), made without a
//! container engine.
//!
//! The archive of it also has the `manifest.json` of `docker save`, so that `docker load` reads it in any version.

use std::path::Path;

use serde_json::{Value, json};

use super::{Entry, Release, archive, gzip, sha256, tar, to_bytes, written};
use crate::{Error, Result};

/// The user and group of the image: the number that distroless images use for `nonroot`.
const USER: u32 = 65_532;
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// The files of an image layout by their paths.
#[derive(Clone, Debug)]
pub struct Image {
    pub files: Vec<(String, Vec<u8>)>,
}

impl Image {
    /// All files as one tar archive.
    ///
    /// # Errors
    /// A path that is too long.
    pub fn archive(&self, time: u64) -> Result<Vec<u8>> {
        let entries: Vec<Entry> = self.files.iter().map(|(path, content)| Entry::file(path, content.clone())).collect();
        tar(&entries, "", time)
    }

    /// Adds a blob; returns how a manifest refers to it.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Result<Value> {
        let digest = sha256(&content)?;
        let size = content.len();
        self.files.push((format!("blobs/sha256/{digest}"), content));
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
    }
}

/// The image of a release.
///
/// # Errors
/// This system has no CA certificates.
pub fn image(release: &Release) -> Result<Image> {
    let layer = tar(&content(release)?, "", release.time)?;
    let created = written(release.time)?;
    let (platform, version) = (json!({ "architecture": release.target.oci, "os": "linux" }), &release.version);
    let configuration = json!({
        "architecture": release.target.oci,
        "os": "linux",
        "created": created,
        "config": {
            "User": format!("{USER}:{USER}"),
            "Entrypoint": ["/outrigger"],
            "Cmd": ["run"],
            "Env": ["PATH=/", "OUTRIGGER_LISTEN=0.0.0.0:8080", "OUTRIGGER_ADMIN_LISTEN=0.0.0.0:9091"],
            "ExposedPorts": { "8080/tcp": {}, "9091/tcp": {} },
            "WorkingDir": "/var/lib/outrigger",
            "Labels": labels(version, &created),
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)] },
        "history": [{ "created": created, "created_by": "cargo xtask dist" }],
    });
    let mut image = Image { files: vec![] };
    let layer = image.add("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&layer)?)?;
    let configuration = image.add("application/vnd.oci.image.config.v1+json", to_bytes(&configuration))?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": configuration,
        "layers": [layer],
        "annotations": labels(version, &created),
    });
    let mut described = image.add("application/vnd.oci.image.manifest.v1+json", to_bytes(&manifest))?;
    described["platform"] = platform;
    described["annotations"] = json!({
        "org.opencontainers.image.ref.name": version,
        "io.containerd.image.name": format!("docker.io/library/outrigger:{version}"),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    });
    let blob = |described: &Value| described["digest"].as_str().unwrap_or_default().replace(':', "/");
    let for_docker = json!([{
        "Config": format!("blobs/{}", blob(&configuration)),
        "Layers": [format!("blobs/{}", blob(&layer))],
        "RepoTags": [format!("outrigger:{version}")],
    }]);
    image.files.push(("oci-layout".to_owned(), to_bytes(&json!({ "imageLayoutVersion": "1.0.0" }))));
    image.files.push(("index.json".to_owned(), to_bytes(&index)));
    image.files.push(("manifest.json".to_owned(), to_bytes(&for_docker)));
    Ok(image)
}

fn labels(version: &str, created: &str) -> Value {
    json!({
        "org.opencontainers.image.title": "outrigger",
        "org.opencontainers.image.description": "A resilience sidecar for web apps",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.licenses": "Apache-2.0",
    })
}

fn content(release: &Release) -> Result<Vec<Entry>> {
    let certificates = archive::read(&Path::new("/").join(CERTIFICATES))
        .map_err(|error| Error::new(error).hint("install ca-certificates: the image gets those of this system"))?;
    Ok(vec![
        Entry::program("outrigger", release.program.clone()),
        Entry::file(CERTIFICATES, certificates),
        Entry::file("etc/passwd", format!("nonroot:x:{USER}:{USER}::/var/lib/outrigger:/outrigger\n")),
        Entry::file("etc/group", format!("nonroot:x:{USER}:\n")),
        Entry::directory("var/lib/outrigger").with_mode(0o700).owned_by(USER),
        Entry::directory("tmp").with_mode(0o1777),
        Entry::file("usr/share/doc/outrigger/LICENSE", super::file_of_repository("LICENSE")?),
        Entry::file("usr/share/doc/outrigger/THIRD-PARTY-LICENSES", release.bill.notices()?),
    ])
}
