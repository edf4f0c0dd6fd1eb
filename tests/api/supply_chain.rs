//! Code of others that this repository runs: GitHub actions are pinned to a commit, which cannot be changed.

use std::path::Path;

#[test]
fn actions_are_pinned_by_commit_with_their_version() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines().filter(|line| line.contains("uses:")) {
            let (_, pinned) = line.split_once('@').unwrap_or_else(|| panic!("{}: {line}", path.display()));
            let (commit, version) = pinned.split_once(" # v").unwrap_or_else(|| panic!("{}: {line}", path.display()));
            let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_commit && !version.is_empty(), "{}: {line}", path.display());
            found += 1;
        }
    }
    assert!(found > 0);
}

#[test]
fn advisories_are_a_job_of_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workflow = std::fs::read_to_string(root.join(".github/workflows/ci.yml")).unwrap();
    let (_, job) = workflow.split_once("\n  advisories:\n").unwrap();
    let job = job.split("\n\n").next().unwrap();
    assert!(job.contains("./dev check-advisories") && !job.contains("continue-on-error"), "{job}");
}

/// Images that are built on or started are pinned by digest. LiteLLM's in `compose.yaml` is an example that users replace.
#[test]
fn images_are_pinned_by_digest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = 0;
    for (file, start) in [("Dockerfile", "FROM "), ("compose.yaml", "image: ")] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let images =
            text.lines().filter_map(|line| line.trim().strip_prefix(start)).map(|line| line.split(' ').next().unwrap());
        for image in images.filter(|image| *image != "chef" && !image.starts_with("ghcr.io/berriai/litellm:")) {
            let digest = image.split_once("@sha256:").map(|(_, digest)| digest).unwrap_or_default();
            assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{file}: {image}");
            found += 1;
        }
    }
    assert_eq!(found, 3);
}
