use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::config::Config;
use crate::error::ConfigError;

/// A directory with these files, which is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn of(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("outrigger-include-{name}-{}", std::process::id()));
        let directory = Self(path);
        for (file, text) in files {
            let file = directory.0.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        directory
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.0.join("proxy.toml"), &|_| None)
    }

    /// The problems, without the directory's name.
    fn refused(&self) -> String {
        let text = self.load().err().map_or_else(String::new, |e| e.to_string());
        text.replace(&self.0.display().to_string(), "")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MAIN: &str =
    "include = [\"rules.d/*.toml\"]\n[app]\ntimeout = \"30s\"\n[[routes]]\nname = \"first\"\npath = \"/first\"\n";

#[test]
fn files_are_joined_in_the_order_of_their_names() {
    let route = |name: &str| format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\n");
    let directory = Directory::of(
        "order",
        &[
            ("proxy.toml", MAIN),
            ("rules.d/20-b.toml", &route("b")),
            ("rules.d/10-a.toml", &format!("[app]\nhold = \"7s\"\n{}", route("a"))),
            ("rules.d/.hidden.toml", "wrong"),
            ("rules.d/a.toml~", "wrong"),
        ],
    );
    let config = directory.load().unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<&str> = config.routes.all().iter().map(|route| &*route.name).collect();
    let own: Vec<&&str> = names.iter().filter(|name| ["first", "a", "b"].contains(name)).collect();
    assert_eq!(own, [&"first", &"a", &"b"]);
    assert_eq!((config.app.timeout.as_secs(), config.app.hold.as_secs()), (30, 7));
    let read: Vec<_> = config.inputs.versions().keys().filter_map(|file| file.file_name()?.to_str()).collect();
    assert_eq!(read, ["proxy.toml", "10-a.toml", "20-b.toml"]);
}

#[test]
fn mistakes_are_reported_in_their_own_file() {
    let directory = Directory::of(
        "mistakes",
        &[
            (
                "proxy.toml",
                "include = [\"rules.d/*.toml\", \"missing.toml\", \"nowhere/*.toml\"]\n[app]\ntimeout = \"30s\"\n",
            ),
            ("rules.d/a.toml", "# é\n[app]\ntimeout = \"5s\"\nconnect_timeout = \"30\"\n"),
            ("rules.d/b.toml", "include = [\"c.toml\"]\n[server]\nlisten = \n"),
            ("rules.d/c.toml", "[identity]\ntrusted = [\"10.0.0.0/8\"]\n"),
            ("rules.d/d.toml", "[identity]\ntrusted = [\"10.0.0.0/8\"]\n"),
        ],
    );
    insta::assert_snapshot!(directory.refused());
    let places: BTreeMap<String, Option<usize>> =
        directory.load().unwrap_err().findings().into_iter().map(|finding| (finding.file, finding.line)).collect();
    assert_eq!(places.len(), 4, "{places:?}");
}

#[test]
fn patterns_that_are_none_are_refused() {
    for pattern in ["", "rules.d/", "*/a.toml", "**/*.toml", "a[0-9].toml", "{a,b}.toml", "${DIR}/a.toml"] {
        let directory = Directory::of("patterns", &[("proxy.toml", &format!("include = [{pattern:?}]\n"))]);
        assert!(directory.refused().contains("`include`"), "{pattern}");
    }
    let directory = Directory::of("place", &[("proxy.toml", "[server]\ninclude = [\"a.toml\"]\n")]);
    assert!(directory.refused().contains("before the first [table]"), "{}", directory.refused());
}

#[test]
fn no_file_is_read_twice() {
    let route = "[[routes]]\nname = \"a\"\npath = \"/a\"\n";
    let directory = Directory::of(
        "twice",
        &[("proxy.toml", "include = [\"*.toml\", \"a.toml\", \"./a.toml\"]\n"), ("a.toml", route)],
    );
    directory.load().unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn the_number_of_files_and_their_size_are_bounded() {
    let files: Vec<String> = (0..MOST_FILES).map(|number| format!("rules.d/{number:03}.toml")).collect();
    let mut all: Vec<(&str, &str)> = files.iter().map(|file| (file.as_str(), "# nothing\n")).collect();
    all.push(("proxy.toml", MAIN));
    let refused = Directory::of("many", &all).refused();
    assert!(refused.contains("rules.d/255.toml is one too many: a configuration has at most 256 files"), "{refused}");
    let long = format!("#{}", "x".repeat(MOST_BYTES));
    let refused = Directory::of("long", &[("proxy.toml", MAIN), ("rules.d/a.toml", &long)]).refused();
    assert!(refused.contains("a.toml is too long: a configuration has at most 16MiB"), "{refused}");
}

#[test]
fn changed_added_and_removed_files_are_other_versions() {
    let directory = Directory::of("versions", &[("proxy.toml", MAIN), ("rules.d/a.toml", "# a\n")]);
    let inputs = directory.load().unwrap().inputs;
    assert_eq!(inputs.now(), *inputs.versions());
    let file = |name: &str| directory.0.join("rules.d").join(name);
    fs::write(file("b.toml"), "# b\n").unwrap();
    assert_ne!(inputs.now(), *inputs.versions(), "added");
    fs::remove_file(file("b.toml")).unwrap();
    assert_eq!(inputs.now(), *inputs.versions());
    fs::write(file("a.toml"), "# changed\n").unwrap();
    assert_ne!(inputs.now(), *inputs.versions(), "changed");
    fs::remove_file(file("a.toml")).unwrap();
    assert_ne!(inputs.now(), *inputs.versions(), "removed");
    fs::write(file("a.toml"), "wrong\n").unwrap();
    let inputs = directory.load().unwrap_err().inputs;
    fs::write(file("a.toml"), "# right\n").unwrap();
    assert_ne!(inputs.now(), *inputs.versions(), "a file that was refused is watched, too");
}
