//! What the database account can do to root by replacing files that it owns.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use private_postgres::{LocalPostgres, keep_secret};

use super::{TemporaryHome, as_the_account, eventually, is_alive, options, query, start, temporary_home};

/// Files that belong to root. No test may change them.
struct Victims {
    directory: TemporaryHome,
    files: Vec<PathBuf>,
}

impl Victims {
    fn new(count: usize) -> Self {
        let directory = temporary_home();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let files: Vec<PathBuf> = (0..count).map(|number| directory.path().join(format!("victim-{number}"))).collect();
        for file in &files {
            std::fs::write(file, "root's own").unwrap();
            std::fs::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
        }
        Self { directory, files }
    }

    fn assert_unharmed(&self) {
        for file in &self.files {
            assert_eq!(std::fs::read_to_string(file).unwrap(), "root's own", "{}", file.display());
            let metadata = file.metadata().unwrap();
            assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o644), "{}", file.display());
        }
        let entries = self.directory.path().read_dir().unwrap().count();
        assert_eq!(entries, self.files.len(), "something was made beside them");
    }
}

fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: only root has an account to be wary of");
    }
    root
}

/// Replaces `path` by a link, as the owner of the directory could.
fn replace(path: &Path, link: impl Fn(&Path)) {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
    link(path);
}

#[test]
fn links_in_the_data_directory_lead_root_nowhere() {
    if !is_root() {
        return;
    }
    let home = temporary_home();
    start(&home).stop().unwrap();
    let data = home.path().join("data");
    for hard in [false, true] {
        let victims = Victims::new(3);
        let names = ["litespend.conf", "postmaster.pid", "postmaster.opts"];
        for (name, victim) in names.iter().zip(&victims.files) {
            replace(&data.join(name), |path| {
                if hard {
                    std::fs::hard_link(victim, path).unwrap();
                } else {
                    symlink(victim, path).unwrap();
                }
            });
        }
        // PostgreSQL itself fails where the account has no rights. That does not harm root.
        let result = LocalPostgres::start(options(home.path()));
        victims.assert_unharmed();
        for name in names {
            let _ = std::fs::remove_file(data.join(name));
        }
        drop(result);
    }
    let server = start(&home);
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
    server.stop().unwrap();

    // A dangling link must create no file, and a pipe must block nobody.
    let victims = Victims::new(0);
    for name in ["litespend.conf", "postmaster.pid"] {
        replace(&data.join(name), |path| symlink(victims.directory.path().join(name), path).unwrap());
    }
    start(&home).stop().unwrap();
    victims.assert_unharmed();
    for name in ["litespend.conf", "postmaster.pid"] {
        replace(&data.join(name), |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap());
    }
    let server = start(&home);
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
}

#[test]
fn while_it_runs_links_lead_root_nowhere_and_the_settings_belong_to_the_account() {
    if !is_root() {
        return;
    }
    let home = temporary_home();
    let server = start(&home);
    let data = home.path().join("data");
    let owner = data.metadata().unwrap().uid();
    assert_ne!(owner, 0);
    let conf = data.join("litespend.conf").metadata().unwrap();
    assert_eq!((conf.uid(), conf.mode() & 0o777), (owner, 0o600));
    let of_home = home.path().metadata().unwrap();
    assert_eq!((of_home.uid(), of_home.mode() & 0o022), (0, 0));
    let log = home.path().join("postgres.log").metadata().unwrap();
    assert_eq!((log.uid(), log.mode() & 0o777), (0, 0o600));

    let victims = Victims::new(2);
    replace(&data.join("postmaster.pid"), |path| symlink(&victims.files[0], path).unwrap());
    replace(&data.join("litespend.conf"), |path| symlink(&victims.files[1], path).unwrap());
    super::send(server.pid().unwrap(), nix::sys::signal::Signal::SIGKILL);
    // PostgreSQL is started again, and the server looks at the file before that.
    assert!(eventually(|| !data.join("postmaster.pid").is_symlink()));
    drop(server);
    victims.assert_unharmed();
}

#[test]
fn links_of_a_hostile_owner_of_the_home_lead_root_nowhere() {
    if !is_root() {
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw()));
    for name in ["lock", "postgres.log", "run", "data", "data.new", "master_key"] {
        let victims = Victims::new(1);
        let home = temporary_home();
        std::os::unix::fs::chown(home.path(), uid, gid).unwrap();
        let link = home.path().join(name);
        symlink(&victims.files[0], &link).unwrap();
        std::os::unix::fs::lchown(&link, uid, gid).unwrap();
        drop(LocalPostgres::start(options(home.path())));
        let kept = keep_secret(home.path(), "master_key", || "sk-made".to_owned());
        assert_eq!(kept.is_err(), name == "master_key", "{name}: {kept:?}");
        victims.assert_unharmed();
    }
}

#[test]
fn a_home_that_others_can_replace_is_refused_by_root() {
    if !is_root() {
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let way = temporary_home();
    let home = way.path().join("home");
    std::os::unix::fs::chown(way.path(), Some(nobody.uid.as_raw()), None).unwrap();
    for exists in [false, true] {
        if exists {
            std::fs::create_dir(&home).unwrap();
        }
        let refusal = LocalPostgres::start(options(&home)).unwrap_err().to_string();
        assert!(refusal.contains("can replace a directory on the way"), "{refusal}");
    }
    std::os::unix::fs::chown(way.path(), Some(0), None).unwrap();
    std::fs::set_permissions(way.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let refusal = LocalPostgres::start(options(&home)).unwrap_err().to_string();
    assert!(refusal.contains("users other than root can write"), "{refusal}");
    let refusal = LocalPostgres::start(options(Path::new("/tmp"))).unwrap_err().to_string();
    assert!(refusal.contains("it is a shared directory"), "{refusal}");
}

#[test]
fn only_a_postgresql_of_the_account_is_signalled() {
    let home = temporary_home();
    start(&home).stop().unwrap();
    let data = home.path().join("data");
    // Processes whose working directory is the data directory but that are not PostgreSQL: one of root, one of the
    // account.
    let mut sleepers: Vec<_> = [false, true]
        .into_iter()
        .map(|as_account| {
            let mut command = Command::new("sleep");
            if as_account {
                as_the_account(&mut command);
            }
            command.arg("60").current_dir(&data).stdin(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for sleeper in &mut sleepers {
        let pid_file = data.join("postmaster.pid");
        std::fs::write(&pid_file, format!("{}\n{}\n1\n5432\n/run\n\n 1 2\nready\n", sleeper.id(), data.display()))
            .unwrap();
        let owner = data.metadata().unwrap();
        std::os::unix::fs::chown(&pid_file, Some(owner.uid()), Some(owner.gid())).unwrap();
        let server = start(&home);
        assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
        assert!(sleeper.try_wait().unwrap().is_none() && is_alive(sleeper.id()), "a stranger was ended");
        server.stop().unwrap();
    }
    for mut sleeper in sleepers {
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}

#[test]
fn the_socket_is_closed_to_other_users() {
    let home = temporary_home();
    let server = start(&home);
    let run = home.path().join("run");
    assert_eq!(run.metadata().unwrap().mode() & 0o077, 0);
    if is_root() {
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        let socket = run.join(".s.PGSQL.5432");
        let mut command = Command::new("python3");
        command.args(["-c", "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"]).arg(&socket);
        std::os::unix::process::CommandExt::uid(&mut command, nobody.uid.as_raw());
        let output = command.output();
        assert!(output.is_err() || !output.unwrap().status.success());
    }
    drop(server);
}
