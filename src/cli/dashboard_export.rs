//! The static export of LiteLLM's dashboard, which `serve --ui` without a folder fetches: it is part of LiteLLM's wheel,
//! which Python's package installer downloads. The export is kept for the next start. Its digest decides whether it is used.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use crate::cli::output::say;
use crate::identity::hex;

/// The digest of the export, and the version of LiteLLM that has it.
const EXPECTED: &str = include_str!("../../data/dashboard.sha256");

/// Downloads a wheel and unpacks the export in it. Python has both a client of its index and a reader of wheels.
/// Arguments: the version, a directory for the wheel, and the directory of the export.
const SCRIPT: &str = r#"
import glob, os, subprocess, sys, zipfile
version, wheels, export = sys.argv[1:]
pip = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                      "--only-binary", ":all:", "--dest", wheels, "litellm==" + version],
                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
if pip.returncode != 0:
    lines = [line.strip() for line in pip.stdout.splitlines() if line.strip()] or ["pip failed and said nothing"]
    sys.exit(([line for line in lines if line.startswith("ERROR:")] or lines)[-1])
folder = "litellm/proxy/_experimental/out/"
with zipfile.ZipFile(glob.glob(os.path.join(wheels, "litellm-*.whl"))[0]) as wheel:
    for name in wheel.namelist():
        if name.startswith(folder) and not name.endswith("/"):
            wheel.extract(name, wheels)
os.rename(os.path.join(wheels, folder), export)
"#;

/// The folder of the export. Fetches it if it is not there.
pub fn folder() -> anyhow::Result<PathBuf> {
    let (digest, version) = EXPECTED.trim().split_once("  ").context("the digest of the dashboard is unreadable")?;
    let cache = cache_directory();
    let export = cache.join(format!("dashboard-{version}"));
    if export.is_dir() {
        if digest_of(&export)? == digest {
            return Ok(export);
        }
        std::fs::remove_dir_all(&export).with_context(|| format!("cannot replace {}", export.display()))?;
    }
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    say!(
        "fetching LiteLLM's dashboard: the wheel of litellm {version} (about 40 MB), with pip, to {}",
        cache.display()
    );
    let scratch = tempfile::tempdir_in(&cache).context("no room for the download")?;
    let fetched = scratch.path().join("export");
    download(pythons(), version, scratch.path(), &fetched)?;
    let found = digest_of(&fetched)?;
    ensure!(
        found == digest,
        "the dashboard of litellm {version} is not the one that litespend knows: it has the digest {found}"
    );
    if let Err(error) = std::fs::rename(&fetched, &export) {
        // Another server may have been faster.
        ensure!(export.is_dir(), "cannot keep the dashboard in {}: {error}", export.display());
    }
    Ok(export)
}

fn cache_directory() -> PathBuf {
    let set = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|directory| directory.is_absolute());
    let of_user = || std::env::home_dir().map(|home| home.join(".cache"));
    set.or_else(of_user).unwrap_or_else(std::env::temp_dir).join("litespend")
}

fn download(pythons: Vec<Command>, version: &str, wheels: &Path, export: &Path) -> anyhow::Result<()> {
    let mut reasons = Vec::new();
    for mut command in pythons {
        let name = command.get_program().to_string_lossy().into_owned();
        command.args(["-c", SCRIPT, version]).arg(wheels).arg(export).stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
                reasons.push(format!("{name}: {last}"));
            }
            Err(error) => reasons.push(format!("{name}: {error}")),
        }
    }
    bail!(
        "cannot fetch the dashboard ({}): set --ui to the folder litellm/proxy/_experimental/out of its wheel",
        reasons.join("; ")
    )
}

/// The Pythons to try: the one beside this program, the one in `PATH`, and one that `uv` runs with pip.
fn pythons() -> Vec<Command> {
    let program = std::env::current_exe().ok().and_then(|program| program.canonicalize().ok());
    let beside = program.and_then(|program| Some(program.parent()?.join("python3"))).filter(|python| python.is_file());
    let mut commands: Vec<Command> = beside.into_iter().map(Command::new).collect();
    commands.push(Command::new("python3"));
    let mut uv = Command::new("uv");
    uv.args(["run", "--quiet", "--no-project", "--with", "pip", "python3"]);
    commands.push(uv);
    commands
}

/// The digest of a folder: that of a list with a line for each file, its digest and its path, in the order of the paths.
fn digest_of(folder: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    collect(folder, folder, &mut files).with_context(|| format!("cannot read {}", folder.display()))?;
    files.sort();
    let mut list = Sha256::new();
    for name in files {
        let content = std::fs::read(folder.join(&name)).with_context(|| format!("cannot read {name}"))?;
        list.update(format!("{}  {name}\n", hex(&Sha256::digest(content))));
    }
    Ok(hex(&list.finalize()))
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(root, &entry.path(), files)?;
        } else {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap_or(&path);
            files.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_a_list_that_anybody_can_make() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("b.html"), "b").unwrap();
        std::fs::write(folder.path().join("a/c.js"), "c").unwrap();
        // printf of the two lines of `sha256sum a/c.js b.html`, piped to `sha256sum`.
        let expected = "b36133c9d3726df415804080feb3ae16db2408b154f34e83d48c4701b68f6493";
        assert_eq!(digest_of(folder.path()).unwrap(), expected);
        std::fs::write(folder.path().join("a/c.js"), "d").unwrap();
        assert_ne!(digest_of(folder.path()).unwrap(), expected);
    }

    #[test]
    fn a_failed_download_gives_the_reason_of_pip() {
        let folder = tempfile::tempdir().unwrap();
        let reason = |pip: &str| {
            std::fs::create_dir_all(folder.path().join("pip")).unwrap();
            std::fs::write(folder.path().join("pip/__init__.py"), "").unwrap();
            std::fs::write(folder.path().join("pip/__main__.py"), pip).unwrap();
            let mut python = Command::new("python3");
            python.env("PYTHONPATH", folder.path()).env("PYTHONDONTWRITEBYTECODE", "1");
            download(vec![python], "1.2.3", folder.path(), &folder.path().join("export")).unwrap_err().to_string()
        };
        let said = reason(
            "import sys\nprint('Looking', sys.argv[-1])\nsys.exit('WARNING: a\\nERROR: No matching distribution found\\n[notice] b')",
        );
        assert!(said.contains("(python3: ERROR: No matching distribution found)"), "{said}");
        let said = reason("import sys\nprint('first')\nsys.exit('no index')");
        assert!(said.contains("(python3: no index)"), "{said}");
        let said = reason("import sys\nsys.exit(1)");
        assert!(said.contains("(python3: pip failed and said nothing)"), "{said}");
    }

    #[test]
    fn the_expected_digest_belongs_to_the_version_that_the_tests_compare_with() {
        let (digest, version) = EXPECTED.trim().split_once("  ").unwrap();
        assert_eq!(digest.len(), 64);
        assert_eq!(version, include_str!("../../tests/reference/VERSION").trim());
    }
}
