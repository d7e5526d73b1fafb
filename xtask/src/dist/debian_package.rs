//! The Debian package, made without dpkg and without root: an archive of `ar` with two of tar.
//!
//! Its files are in `deploy/debian/`. The program is static, so one package fits every release of Debian and Ubuntu.

use super::{Entry, Release, ar, file_of_repository, gzip, md5, tar};
use crate::Result;

/// Files that an upgrade leaves as the administrator has changed them.
const CONFFILES: [&str; 2] = ["etc/default/outrigger", "etc/outrigger/proxy.toml"];

/// `outrigger_VERSION_ARCHITECTURE.deb`.
///
/// # Errors
/// A file of the repository that is missing.
pub fn debian_package(release: &Release) -> Result<Vec<u8>> {
    let files = files(release)?;
    let data = gzip(&tar(&files, "./", release.time)?)?;
    let control = gzip(&tar(&control(release, &files)?, "./", release.time)?)?;
    Ok(ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz", &control), ("data.tar.gz", &data)], release.time))
}

fn files(release: &Release) -> Result<Vec<Entry>> {
    let [bash, zsh, fish] = &release.completions;
    let documents = "usr/share/doc/outrigger";
    let mut files = vec![
        Entry::program("usr/bin/outrigger", release.program.clone()),
        Entry::file("etc/outrigger/proxy.toml", file_of_repository("deploy/debian/proxy.toml")?),
        // Only root, which is systemd, reads the secrets in it.
        Entry::file("etc/default/outrigger", file_of_repository("deploy/debian/default")?).with_mode(0o640),
        Entry::file("usr/lib/systemd/system/outrigger.service", file_of_repository("deploy/debian/outrigger.service")?),
        Entry::file("usr/share/bash-completion/completions/outrigger", bash.clone()),
        Entry::file("usr/share/zsh/vendor-completions/_outrigger", zsh.clone()),
        Entry::file("usr/share/fish/vendor_completions.d/outrigger.fish", fish.clone()),
        Entry::file(format!("{documents}/examples/proxy.toml"), file_of_repository("config/proxy.toml")?),
        Entry::file(format!("{documents}/examples/proxy.schema.json"), file_of_repository("config/proxy.schema.json")?),
        Entry::file(format!("{documents}/changelog.gz"), gzip(&file_of_repository("CHANGELOG.md")?)?),
        Entry::file(format!("{documents}/copyright"), copyright()?),
        Entry::file(format!("{documents}/third-party-licenses.gz"), gzip(&release.bill.notices()?)?),
    ];
    for (name, page) in &release.pages {
        files.push(Entry::file(format!("usr/share/man/man1/{name}.gz"), gzip(page)?));
    }
    Ok(files)
}

fn copyright() -> Result<Vec<u8>> {
    let mut text = b"Outrigger is under the Apache License 2.0, in /usr/share/common-licenses/Apache-2.0 and below. The packages\n\
        that the program contains, and their licences, are in third-party-licenses.gz.\n\n"
        .to_vec();
    text.extend(file_of_repository("LICENSE")?);
    Ok(text)
}

fn control(release: &Release, files: &[Entry]) -> Result<Vec<Entry>> {
    let contents = || files.iter().filter_map(|file| Some((&file.path, file.content.as_deref()?)));
    // In KiB, each file by itself; a directory counts as one.
    let size: usize = contents().map(|(_, content)| content.len().div_ceil(1024)).sum::<usize>() + files.len();
    let (version, architecture) = (&release.version, release.target.debian);
    let about = format!(
        "Package: outrigger\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: Outrigger maintainers <maintainers@outrigger.invalid>\n\
         Installed-Size: {size}\n\
         Recommends: ca-certificates\n\
         Section: httpd\n\
         Priority: optional\n\
         Description: resilience sidecar for web apps\n \
         A reverse proxy that runs in front of an app and keeps it available during\n \
         traffic spikes, dependency failures and deploys: rate limits, an adaptive\n \
         concurrency limit, circuit breakers, retries, and requests that wait while\n \
         the app restarts.\n"
    );
    let mut sums = String::new();
    for (path, content) in contents().filter(|(path, _)| !CONFFILES.contains(&path.as_str())) {
        sums.push_str(&format!("{}  {path}\n", md5(content)?));
    }
    let conffiles: String = CONFFILES.map(|file| format!("/{file}\n")).concat();
    let mut control =
        vec![Entry::file("control", about), Entry::file("md5sums", sums), Entry::file("conffiles", conffiles)];
    for script in ["postinst", "prerm", "postrm"] {
        control.push(Entry::program(script, file_of_repository(&format!("deploy/debian/{script}"))?));
    }
    Ok(control)
}
