//! Reads a response ahead of its client: a small part into memory, and the rest into a file. So the database connection
//! is free as soon as the database is done, however slowly the client receives the response. A response whose client keeps
//! up waits for it, and needs no file. If a response outgrows its space, it waits for its client as well: for a limited
//! time in total, and is then cut short.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::Instrument;

use crate::http::error::ApiError;
use crate::http::stream::CHUNK;
use crate::http::stream::spool::{Spool, SpoolBudget, SpoolRange};

/// Maximum size of the part of a response in memory, in bytes. A single larger chunk is split before.
const IN_MEMORY: usize = 4 * CHUNK;

/// Maximum total time that a response without space may hold a connection while it waits for its client.
const WAIT: Duration = Duration::from_secs(10);

/// Maximum time that a response waits for its client to take the next chunk before it uses a file.
const PATIENCE: Duration = Duration::from_millis(30);

/// Maximum total time of these waits. After it, a response whose client is slower than the database uses a file.
const PATIENCE_IN_TOTAL: Duration = Duration::from_millis(500);

/// Permits and disk space of a response that does not fit into one chunk.
#[derive(Debug)]
pub struct LargeAnswer {
    /// Permits for large responses. The response holds them until it is sent.
    pub permits: Vec<OwnedSemaphorePermit>,
    /// Permits for responses that hold a connection while they wait for their client.
    pub waiting: Arc<Semaphore>,
    /// Disk space for the part that does not fit into memory.
    pub budget: SpoolBudget,
}

/// The chunks of a response body.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, ApiError>> + Send>>;

struct Shared {
    buffer: Mutex<Buffer>,
    /// Wakes the client's side: a chunk arrived, or the end.
    filled: Notify,
    /// Wakes the database's side: a chunk was taken, or the client disconnected.
    emptied: Notify,
    waiting: Arc<Semaphore>,
    budget: SpoolBudget,
}

#[derive(Default)]
struct Buffer {
    /// The oldest chunks. The chunks in the file come after them.
    memory: VecDeque<Bytes>,
    in_memory: usize,
    spool: Option<Spool>,
    /// Whether writing to the file failed, so that it is not used any more.
    spool_failed: bool,
    /// Whether a write to the file is in progress.
    writing: bool,
    ended: bool,
    failure: Option<ApiError>,
    abandoned: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock()
    }
}

/// The same chunks, read ahead by a separate task. Dropping the stream ends the task, and with it the read.
pub fn read_ahead(chunks: Chunks, answer: LargeAnswer) -> impl Stream<Item = Result<Bytes, ApiError>> + Send {
    let LargeAnswer { permits, waiting, budget } = answer;
    let shared =
        Arc::new(Shared { buffer: Mutex::default(), filled: Notify::new(), emptied: Notify::new(), waiting, budget });
    tokio::spawn(fill(Arc::clone(&shared), chunks).in_current_span());
    let taker = Taker { shared, _permits: permits };
    stream::unfold(Some(taker), |taker| async {
        let taker = taker?;
        match taker.next().await {
            Some(Ok(chunk)) => Some((Ok(chunk), Some(taker))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    })
    .fuse()
}

/// The remaining time that a response may wait for its client.
struct TimeLeft {
    /// Before it uses a file.
    patience: Duration,
    /// When it has no more space.
    wait: Duration,
}

/// Reads until the end, until a failure, or until the client's side is dropped.
async fn fill(shared: Arc<Shared>, mut chunks: Chunks) {
    let mut left = TimeLeft { patience: PATIENCE_IN_TOTAL, wait: WAIT };
    let failure = loop {
        let next = tokio::select! {
            biased;
            () = abandoned(&shared) => return,
            next = chunks.next() => next,
        };
        match next {
            None => break None,
            Some(Err(error)) => break Some(error),
            Some(Ok(chunk)) if chunk.len() <= IN_MEMORY => {
                if let Err(error) = put(&shared, chunk, &mut left).await {
                    break Some(error);
                }
            }
            Some(Ok(chunk)) => {
                // The parts are copied, so that they do not keep the memory of the large chunk alive.
                let mut cut = Ok(());
                for part in chunk.chunks(CHUNK) {
                    cut = put(&shared, Bytes::copy_from_slice(part), &mut left).await;
                    if cut.is_err() {
                        break;
                    }
                }
                if let Err(error) = cut {
                    break Some(error);
                }
            }
        }
    };
    // The connection is released before the client sees the end.
    drop(chunks);
    let mut buffer = shared.lock();
    buffer.ended = true;
    buffer.failure = failure;
    drop(buffer);
    shared.filled.notify_one();
}

async fn abandoned(shared: &Shared) {
    loop {
        let emptied = shared.emptied.notified();
        if shared.lock().abandoned {
            return;
        }
        emptied.await;
    }
}

enum Put {
    Done,
    Wait,
    Write(SpoolRange),
    Full,
}

/// Appends a chunk.
async fn put(shared: &Shared, chunk: Bytes, left: &mut TimeLeft) -> Result<(), ApiError> {
    if chunk.is_empty() {
        return Ok(());
    }
    let mut permits = None;
    loop {
        let emptied = shared.emptied.notified();
        match choose(shared, &chunk, !left.patience.is_zero()) {
            Put::Done => {
                shared.filled.notify_one();
                return Ok(());
            }
            Put::Wait => {
                let start = Instant::now();
                let taken = tokio::time::timeout(PATIENCE.min(left.patience), emptied).await;
                left.patience = match taken {
                    Ok(()) => left.patience.saturating_sub(start.elapsed()),
                    // The client is slow. What the database has goes into the file from now on.
                    Err(_) => Duration::ZERO,
                };
            }
            Put::Write(range) => {
                let bytes = chunk.clone();
                let written = tokio::task::spawn_blocking(move || range.write(&bytes)).await;
                let mut buffer = shared.lock();
                buffer.writing = false;
                match written.map_err(io::Error::other).and_then(|written| written) {
                    Ok(()) => {
                        if let Some(spool) = &mut buffer.spool {
                            spool.put(chunk.len());
                        }
                        drop(buffer);
                        shared.filled.notify_one();
                        return Ok(());
                    }
                    Err(error) => {
                        tracing::warn!(cause = %error, "cannot write to the read-ahead file of a response");
                        buffer.spool_failed = true;
                    }
                }
            }
            Put::Full => {
                if shared.lock().abandoned {
                    return Ok(());
                }
                if permits.is_none() {
                    // A response that gets no permit does not wait, because other reads need their connections.
                    permits = Some(Arc::clone(&shared.waiting).try_acquire_owned().map_err(|_| too_slow())?);
                }
                let start = Instant::now();
                let waited = tokio::time::timeout(left.wait, emptied).await;
                left.wait = left.wait.saturating_sub(start.elapsed());
                waited.map_err(|_| too_slow())?;
            }
        }
    }
}

fn too_slow() -> ApiError {
    ApiError::Internal("the client reads a response too slowly that is larger than the read-ahead buffer".to_owned())
}

/// Chooses where the next chunk goes: into memory if the file is empty and memory has space, and into the file
/// otherwise. While the file is empty, a patient response waits for memory.
fn choose(shared: &Shared, chunk: &Bytes, is_patient: bool) -> Put {
    let mut buffer = shared.lock();
    let buffer = &mut *buffer;
    let spooled = buffer.spool.as_ref().is_some_and(|spool| !spool.is_empty());
    if !spooled && (buffer.memory.is_empty() || buffer.in_memory + chunk.len() <= IN_MEMORY) {
        buffer.in_memory += chunk.len();
        buffer.memory.push_back(chunk.clone());
        return Put::Done;
    }
    if !spooled && is_patient && !buffer.abandoned {
        return Put::Wait;
    }
    if buffer.spool_failed {
        return Put::Full;
    }
    if buffer.spool.is_none() {
        match shared.budget.file() {
            Ok(spool) => buffer.spool = Some(spool),
            Err(error) => {
                tracing::warn!(cause = %error, "cannot create a read-ahead file for a response");
                buffer.spool_failed = true;
                return Put::Full;
            }
        }
    }
    match buffer.spool.as_mut().and_then(|spool| spool.reserve(chunk.len())) {
        Some(range) => {
            buffer.writing = true;
            Put::Write(range)
        }
        None => Put::Full,
    }
}

/// The client's side of the buffer.
struct Taker {
    shared: Arc<Shared>,
    _permits: Vec<OwnedSemaphorePermit>,
}

enum Take {
    Chunk(Bytes),
    Read(SpoolRange),
    End(Option<ApiError>),
    Nothing,
}

impl Taker {
    async fn next(&self) -> Option<Result<Bytes, ApiError>> {
        loop {
            let filled = self.shared.filled.notified();
            match self.look() {
                Take::Chunk(chunk) => {
                    self.shared.emptied.notify_one();
                    return Some(Ok(chunk));
                }
                Take::Read(range) => {
                    let read = tokio::task::spawn_blocking(move || range.read()).await;
                    let chunk = match read.map_err(io::Error::other).and_then(|read| read) {
                        Ok(bytes) => Bytes::from(bytes),
                        Err(error) => {
                            return Some(Err(ApiError::Internal(format!("cannot read the read-ahead file: {error}"))));
                        }
                    };
                    let mut buffer = self.shared.lock();
                    if let Some(spool) = &mut buffer.spool {
                        spool.take(chunk.len());
                        if spool.is_empty() && !buffer.writing {
                            // Releases the disk space for other responses.
                            buffer.spool = None;
                        }
                    }
                    drop(buffer);
                    self.shared.emptied.notify_one();
                    return Some(Ok(chunk));
                }
                Take::End(failure) => return failure.map(Err),
                Take::Nothing => filled.await,
            }
        }
    }

    fn look(&self) -> Take {
        let mut buffer = self.shared.lock();
        if let Some(chunk) = buffer.memory.pop_front() {
            buffer.in_memory -= chunk.len();
            return Take::Chunk(chunk);
        }
        match &buffer.spool {
            Some(spool) if !spool.is_empty() => Take::Read(spool.next(CHUNK)),
            _ if buffer.ended => Take::End(buffer.failure.take()),
            _ => Take::Nothing,
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.shared.lock().abandoned = true;
        self.shared.emptied.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(of_answer: u64, waiting: usize) -> LargeAnswer {
        LargeAnswer {
            permits: Vec::new(),
            waiting: Arc::new(Semaphore::new(waiting)),
            budget: SpoolBudget::new(None, of_answer, of_answer),
        }
    }

    fn chunks(count: u32, ended: Arc<Notify>) -> Chunks {
        Box::pin(async_stream::try_stream! {
            for number in 0..count {
                yield Bytes::from(number.to_be_bytes().repeat(CHUNK / 4));
            }
            ended.notify_one();
        })
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end_before_anybody_takes_it_and_then_taken_in_order() {
        let ended = Arc::new(Notify::new());
        let answer = answer(100 << 20, 0);
        let budget = answer.budget.clone();
        let mut stream = Box::pin(read_ahead(chunks(500, Arc::clone(&ended)), answer));
        tokio::time::timeout(Duration::from_secs(20), ended.notified()).await.expect("is read ahead");
        assert!(budget.used() > 400 * 65_536);
        let mut taken = Vec::new();
        while let Some(chunk) = stream.next().await {
            taken.extend_from_slice(&chunk.expect("is there"));
        }
        let numbers: Vec<u32> =
            taken.chunks(4).map(|four| u32::from_be_bytes(four.try_into().expect("four"))).collect();
        assert_eq!(numbers.len(), 500 * CHUNK / 4);
        assert!(numbers.is_sorted());
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn an_answer_larger_than_its_room_waits_for_its_client_and_is_whole() {
        let stream = read_ahead(chunks(300, Arc::default()), answer(10 * 65_536, 1));
        let mut stream = Box::pin(stream);
        let mut next = 0;
        while let Some(chunk) = stream.next().await {
            for number in chunk.expect("is there").chunks(4) {
                assert_eq!(u32::from_be_bytes(number.try_into().expect("four")), next / (CHUNK as u32 / 4));
                next += 1;
            }
            if next % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(next, 300 * (CHUNK as u32 / 4));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_whose_client_keeps_up_needs_no_file() {
        let answer = answer(100 << 20, 0);
        let budget = answer.budget.clone();
        let mut stream = Box::pin(read_ahead(chunks(500, Arc::default()), answer));
        let mut taken = 0;
        while let Some(chunk) = stream.next().await {
            taken += chunk.expect("is there").len();
            assert_eq!(budget.used(), 0);
        }
        assert_eq!(taken, 500 * CHUNK);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_of_an_answer_larger_than_its_room_is_cut_off() {
        for (waiting, most) in [(1, WAIT + Duration::from_secs(1)), (0, Duration::from_secs(1))] {
            let dropped = Arc::new(());
            let held = Arc::clone(&dropped);
            let chunks: Chunks = Box::pin(async_stream::try_stream! {
                let _held = held;
                loop {
                    yield Bytes::from(vec![0; CHUNK]);
                }
            });
            let mut stream = Box::pin(read_ahead(chunks, answer(10 * 65_536, waiting)));
            let start = tokio::time::Instant::now();
            while Arc::strong_count(&dropped) > 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(start.elapsed() < most);
            }
            let mut last = None;
            while let Some(chunk) = stream.next().await {
                last = Some(chunk);
            }
            assert!(last.expect("an end").is_err());
        }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_any_more_is_not_read_on() {
        let dropped = Arc::new(());
        let held = Arc::clone(&dropped);
        let chunks: Chunks = Box::pin(async_stream::try_stream! {
            let _held = held;
            yield Bytes::from_static(b"x");
            std::future::pending::<()>().await;
        });
        let mut stream = Box::pin(read_ahead(chunks, answer(0, 0)));
        stream.next().await.expect("a chunk").expect("is there");
        drop(stream);
        let gone = async {
            while Arc::strong_count(&dropped) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the read is dropped");
    }
}
