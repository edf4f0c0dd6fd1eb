//! Opens files for `ServeDir`, but only files inside one folder. A symbolic link may lead to another place in the
//! folder, but not out of it.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tower_http::services::fs::{Backend, File};

type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// A folder. Paths are relative to it.
#[derive(Clone, Debug)]
pub(super) struct Folder(Arc<Path>);

impl Folder {
    /// The folder at this path. The path itself may be a link.
    pub(super) fn new(directory: &Path) -> Self {
        Self(directory.into())
    }

    async fn open_with(self, path: PathBuf, flags: OFlags) -> io::Result<(std::fs::File, std::fs::Metadata)> {
        tokio::task::spawn_blocking(move || open(&self.0, &path, flags)).await.map_err(io::Error::other)?
    }
}

impl Backend for Folder {
    type File = FolderFile;
    type Metadata = std::fs::Metadata;
    type OpenFuture = Opening<FolderFile>;
    type MetadataFuture = Opening<std::fs::Metadata>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let folder = self.clone();
        Box::pin(async move {
            // Opening a named pipe would block without `NONBLOCK`.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let (file, metadata) = folder.open_with(path, flags).await?;
            Ok(FolderFile { file: file.into(), metadata })
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let folder = self.clone();
        #[cfg(target_os = "linux")]
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Box::pin(async move { Ok(folder.open_with(path, flags).await?.1) })
    }
}

/// An open file, with the metadata from the time when it was opened.
pub(super) struct FolderFile {
    file: tokio::fs::File,
    metadata: std::fs::Metadata,
}

impl AsyncRead for FolderFile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_read(context, buffer)
    }
}

impl AsyncSeek for FolderFile {
    fn start_seek(mut self: Pin<&mut Self>, position: io::SeekFrom) -> io::Result<()> {
        Pin::new(&mut self.file).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Pin::new(&mut self.file).poll_complete(context)
    }
}

impl File for FolderFile {
    type Metadata = std::fs::Metadata;
    type MetadataFuture<'a> = std::future::Ready<io::Result<std::fs::Metadata>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        std::future::ready(Ok(self.metadata.clone()))
    }
}

/// Opens the file or folder at `path` inside the folder. Anything else is not found. Blocks.
fn open(directory: &Path, path: &Path, flags: OFlags) -> io::Result<(std::fs::File, std::fs::Metadata)> {
    let file = open_beneath(directory, path, flags).map_err(|error| match error {
        Errno::XDEV | Errno::LOOP | Errno::INVAL | Errno::NAMETOOLONG | Errno::NXIO => io::ErrorKind::NotFound.into(),
        error => io::Error::from(error),
    })?;
    let metadata = file.metadata()?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((file, metadata))
}

/// Opens a path that the kernel itself keeps inside the folder, so that nobody can swap a link between the check and
/// the open.
#[cfg(target_os = "linux")]
fn open_beneath(directory: &Path, path: &Path, flags: OFlags) -> Result<std::fs::File, Errno> {
    use rustix::fs::{ResolveFlags, open, openat2};

    let folder = open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let open = |path: &Path, resolve: ResolveFlags| {
        // `AGAIN` means that a name on the path changed during the lookup. The lookup is tried up to eight times.
        let attempt = || openat2(&folder, path, flags, Mode::empty(), ResolveFlags::BENEATH | resolve);
        (0..8).map(|_| attempt()).find(|found| !matches!(found, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
    };
    match open(path, ResolveFlags::NO_MAGICLINKS) {
        Ok(file) => Ok(file.into()),
        // This also happens for a link with an absolute target inside the folder.
        Err(Errno::XDEV) => {
            let (_, inside) = resolve(directory, path)?;
            Ok(open(&inside, ResolveFlags::NO_SYMLINKS)?.into())
        }
        // The kernel is older than 5.6, or a filter forbids the call.
        Err(Errno::NOSYS | Errno::PERM) => open_resolved(directory, path, flags),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(directory: &Path, path: &Path, flags: OFlags) -> Result<std::fs::File, Errno> {
    open_resolved(directory, path, flags)
}

/// Resolves all links of a path, and opens the result if it is inside the folder.
fn open_resolved(directory: &Path, path: &Path, flags: OFlags) -> Result<std::fs::File, Errno> {
    let (folder, inside) = resolve(directory, path)?;
    Ok(rustix::fs::open(folder.join(inside), flags | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// Resolves all links of a path. Returns the folder and the path inside it, or `XDEV` if the result is outside.
fn resolve(directory: &Path, path: &Path) -> Result<(PathBuf, PathBuf), Errno> {
    let plain = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::NOENT);
    let folder = directory.canonicalize().map_err(plain)?;
    let target = directory.join(path).canonicalize().map_err(plain)?;
    let inside = target.strip_prefix(&folder).map_err(|_| Errno::XDEV)?;
    let inside = if inside.as_os_str().is_empty() { PathBuf::from(".") } else { inside.to_owned() };
    Ok((folder, inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_opening_end_at_the_folder() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, root.join(from)).expect("a link");
        std::fs::create_dir_all(root.join("out/sub")).expect("a folder");
        for (name, text) in [("secret", "s"), ("out/file", "f"), ("out/sub/file", "g")] {
            std::fs::write(root.join(name), text).expect("a file");
        }
        link("../secret", "out/relative");
        link(&root.join("secret").display().to_string(), "out/absolute");
        link("..", "out/parent");
        link("/proc/self/root", "out/system");
        link("loop", "out/loop");
        link("../file", "out/sub/inside");
        link(&root.join("out/sub").display().to_string(), "out/spelled");
        link("../out/file", "out/around");
        link("out", "alias");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        type Open = fn(&Path, &Path, OFlags) -> Result<std::fs::File, Errno>;
        for (way, open) in [("beneath", open_beneath as Open), ("resolved", open_resolved)] {
            for folder in ["out", "alias"] {
                let read = |path: &str| {
                    open(&root.join(folder), Path::new(path), flags)
                        .and_then(|file| std::io::read_to_string(file).map_err(|_| Errno::ISDIR))
                };
                for (path, text) in
                    [("./file", "f"), ("sub/file", "g"), ("sub/inside", "f"), ("spelled/file", "g"), ("around", "f")]
                {
                    assert_eq!(read(path).as_deref(), Ok(text), "{way} {folder}/{path}");
                }
                for path in [
                    "relative",
                    "absolute",
                    "parent/secret",
                    "../secret",
                    "sub/../../secret",
                    "system/etc/passwd",
                    "loop",
                    "file/x",
                    "no-such-file",
                ] {
                    assert!(read(path).is_err(), "{way} {folder}/{path}");
                }
                for path in ["./", "sub/", "spelled"] {
                    assert!(open(&root.join(folder), Path::new(path), flags).is_ok(), "{way} {folder}/{path}");
                }
            }
        }
    }
}
