//! The archive for any Linux: the program and its files, in a directory of their own.

use super::{Entry, Release, file_of_repository, gzip, tar};
use crate::Result;

/// `outrigger-VERSION-TARGET.tar.gz`.
///
/// # Errors
/// A file of the repository that is missing.
pub fn tarball(release: &Release) -> Result<Vec<u8>> {
    let [bash, zsh, fish] = &release.completions;
    let mut entries = vec![
        Entry::program("outrigger", release.program.clone()),
        Entry::file("LICENSE", file_of_repository("LICENSE")?),
        Entry::file("THIRD-PARTY-LICENSES", release.bill.notices()?),
        Entry::file("README.md", file_of_repository("README.md")?),
        Entry::file("CHANGELOG.md", file_of_repository("CHANGELOG.md")?),
        Entry::file("config/proxy.toml", file_of_repository("config/proxy.toml")?),
        Entry::file("config/proxy.schema.json", file_of_repository("config/proxy.schema.json")?),
        Entry::file("completions/outrigger.bash", bash.clone()),
        Entry::file("completions/_outrigger", zsh.clone()),
        Entry::file("completions/outrigger.fish", fish.clone()),
    ];
    entries.extend(release.pages.iter().map(|(name, page)| Entry::file(format!("man/man1/{name}"), page.clone())));
    gzip(&tar(&entries, &format!("{}/", release.name()), release.time)?)
}
