//! Where the homes of the tests' PostgreSQLs are.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

/// A file system in memory, on Linux.
const MEMORY: &str = "/dev/shm";

/// How much must be free there, and how much memory this machine must have left, in bytes. A run needs less than half of
/// it, and that only while the largest tests run.
const ROOM: u64 = 6 * 1024 * 1024 * 1024;

/// A directory with a short path, which every account can reach. It is in memory if there is room. A database consists of
/// more than five hundred files, and each test makes and removes one: on a disk, that takes longer than many a test.
pub(crate) fn of_homes() -> &'static Path {
    static PLACE: OnceLock<&Path> = OnceLock::new();
    PLACE.get_or_init(|| Path::new(if has_room() == Some(true) { MEMORY } else { "/tmp" }))
}

/// `None` if there is no such file system.
fn has_room() -> Option<bool> {
    let file_system = rustix::fs::statvfs(MEMORY).ok()?;
    let is_shared = Path::new(MEMORY).metadata().ok()?.mode() & 0o1777 == 0o1777;
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available: u64 = available.split_whitespace().next()?.parse().ok()?;
    Some(is_shared && file_system.f_bavail * file_system.f_frsize >= ROOM && available * 1024 >= ROOM)
}
