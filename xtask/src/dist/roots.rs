//! Directories in which a program runs as if they were a system: without the libraries of this one, as in a container.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::archive;
use crate::{Program, Result, Tool, error::While};

/// Makes `$1` the root directory, with this system's /proc and /dev, read-only if `$2` says so, and starts the rest there.
const ENTER: &str = r#"
set -eu
root=$1 access=$2 user=$3
shift 3
# PATH is for the rest.
chroot=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v chroot)
mount --bind "$root" "$root"
for dir in proc dev; do
    mkdir -p "$root/$dir"
    mount --rbind "/$dir" "$root/$dir"
done
[ "$access" = rw ] || mount -o remount,bind,ro "$root"
exec "$chroot" ${user:+--userspec="$user"} "$root" "$@"
"#;

/// A directory that becomes the root directory of programs.
#[derive(Clone, Debug)]
pub struct Root {
    directory: PathBuf,
    is_read_only: bool,
    user: Option<u32>,
}

impl Root {
    /// Empty.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).while_(format_args!("creating {}", directory.display()))?;
        Ok(Self { directory: directory.to_path_buf(), is_read_only: false, user: None })
    }

    /// With the content of a tar archive, compressed or not.
    pub fn unpacked(directory: &Path, archive: &Path) -> Result<Self> {
        let root = Self::new(directory)?;
        let unpack = ["--extract", "--same-permissions", "--numeric-owner", "--file"];
        let mut tar = as_root("tar").args(unpack);
        if !rustix::process::geteuid().is_root() {
            // A user namespace has one user only.
            tar = tar.arg("--no-same-owner");
        }
        tar.arg(archive).arg("--directory").arg(directory).output()?;
        Ok(root)
    }

    /// With BusyBox as its shell and tools, and a hosts file: a system without glibc.
    pub fn with_busybox(directory: &Path) -> Result<Self> {
        let root = Self::new(directory)?;
        let busybox = Tool::Busybox.get()?;
        root.add_program("bin/busybox", &busybox)?;
        for name in Program::new(&busybox).arg("--list").output()?.lines().filter(|name| *name != "busybox") {
            let link = root.path(&format!("bin/{name}"));
            symlink("busybox", &link).while_(format_args!("creating {}", link.display()))?;
        }
        root.add("etc/hosts", b"127.0.0.1 localhost\n")?;
        for name in ["tmp", "srv"] {
            fs::create_dir_all(root.path(name)).while_(format_args!("creating {name}"))?;
        }
        Ok(root)
    }

    /// Nothing in it can be changed.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    /// Programs run as this user and group, if this process may choose that.
    #[must_use]
    pub fn with_user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// A path outside for one inside.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.directory.join(inside.trim_start_matches('/'))
    }

    /// Adds a file.
    pub fn add(&self, inside: &str, content: &[u8]) -> Result<()> {
        let path = self.path(inside);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).while_(format_args!("creating {}", above.display()))?;
        }
        archive::write(&path, content)
    }

    /// Adds a program, and the libraries that it needs if it is not static.
    pub fn add_program(&self, inside: &str, program: &Path) -> Result<()> {
        self.add(inside, &archive::read(program)?)?;
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path(inside), executable.clone())
            .while_(format_args!("making {inside} executable"))?;
        // Fails for a static program.
        let listed = Program::new("ldd").arg(program).output().unwrap_or_default();
        let libraries: BTreeSet<&str> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
        for library in libraries {
            self.add(library, &archive::read(Path::new(library))?)?;
            fs::set_permissions(self.path(library), executable.clone()).while_(format_args!("copying {library}"))?;
        }
        Ok(())
    }

    /// A program to start in it, by its path inside.
    pub fn program(&self, inside: &str) -> Program {
        let is_root = rustix::process::geteuid().is_root();
        // In a user namespace, there is only one user.
        let user = self.user.filter(|_| is_root).map_or(String::new(), |id| format!("{id}:{id}"));
        let namespaces: &[&str] = if is_root { &["--mount"] } else { &["--map-root-user", "--mount"] };
        Program::new("unshare")
            .args(namespaces)
            .args(["--propagation", "private", "sh", "-c", ENTER, "enter"])
            .arg(&self.directory)
            .args([if self.is_read_only { "ro" } else { "rw" }, &user, inside])
    }
}

/// Whether this process may change its root directory: it is root, or it may become that in a user namespace.
pub fn can_change_root() -> bool {
    // Root of a container may not, and some systems allow a namespace but no mount in it.
    let namespaces: &[&str] =
        if rustix::process::geteuid().is_root() { &["--mount"] } else { &["--map-root-user", "--mount"] };
    let mounts = ["--propagation", "private", "mount", "--bind", "/", "/mnt"];
    let mut probe = Command::new("unshare");
    probe.args(namespaces).args(mounts).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// A program that needs root: in a user namespace if this process is not root.
fn as_root(program: &str) -> Program {
    if rustix::process::geteuid().is_root() {
        return Program::new(program);
    }
    Program::new("unshare").args(["--map-root-user", program])
}
