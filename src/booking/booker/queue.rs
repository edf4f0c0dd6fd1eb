//! The queue of jobs to be booked. Each sender (the hash of a key, or the name of a command) has its own line, and the
//! queue serves the lines in turn. So no sender waits behind all jobs of another. This module also limits the size of a
//! transaction.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use crate::booking::booker::{BookingError, Outcome};
use crate::booking::{Draft, MAX_RECORDS};

/// The largest weight of one transaction, in rows. Writing this many rows takes about one second. A single record that
/// weighs more gets a transaction of its own.
pub(super) const MAX_WEIGHT: usize = 20_000;

/// The number of bytes of JSON that weigh as much as one row.
const BYTES_OF_A_ROW: usize = 2048;

/// Records of one sender that are booked in the same transaction. A transaction can contain several jobs.
pub(super) struct Job {
    pub drafts: Vec<Draft>,
    /// The sum of the weights of the drafts.
    pub weight: usize,
    /// Receives one outcome per draft, in the order of the drafts.
    pub reply: oneshot::Sender<Result<Vec<Outcome>, BookingError>>,
}

/// The weight of a draft in rows: one for its own row, one per tag, and one per `BYTES_OF_A_ROW` bytes of its JSON.
pub(super) fn weight(draft: &Draft) -> usize {
    1 + draft.row.tags.len() + draft.row.text_bytes() / BYTES_OF_A_ROW
}

/// Splits records into batches of one transaction each, and keeps their order. Returns each batch with its weight. Only
/// the weight limits a batch, not the number of records.
pub(super) fn batches(drafts: Vec<Draft>) -> Vec<(Vec<Draft>, usize)> {
    let mut batches: Vec<(Vec<Draft>, usize)> = Vec::new();
    for draft in drafts {
        let own = weight(&draft);
        match batches.last_mut() {
            Some((batch, sum)) if *sum + own <= MAX_WEIGHT => {
                batch.push(draft);
                *sum += own;
            }
            _ => batches.push((vec![draft], own)),
        }
    }
    batches
}

/// The queue: one line of jobs per sender.
#[derive(Default)]
pub(super) struct Queue {
    lines: HashMap<String, VecDeque<Job>>,
    /// The senders whose lines are not empty, the next one first.
    order: VecDeque<String>,
}

impl Queue {
    /// Appends a job to its sender's line.
    pub(super) fn push(&mut self, sender: &str, job: Job) {
        let line = self.lines.entry(sender.to_owned()).or_default();
        if line.is_empty() {
            self.order.push_back(sender.to_owned());
        }
        line.push_back(job);
    }

    /// Takes the jobs of the next transaction: one job from each sender in turn, repeatedly, until the next job would
    /// exceed [`MAX_WEIGHT`] or [`MAX_RECORDS`]. Takes at least one job if any is queued.
    pub(super) fn next(&mut self) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        let (mut weight, mut records) = (0, 0);
        while let Some(sender) = self.order.front() {
            let Some(line) = self.lines.get_mut(sender) else {
                self.order.pop_front();
                continue;
            };
            if let Some(next) = line.front() {
                weight += next.weight;
                records += next.drafts.len();
                if (weight > MAX_WEIGHT || records > MAX_RECORDS) && !jobs.is_empty() {
                    // The job stays in its line, and its sender is the first in the next transaction.
                    break;
                }
            }
            jobs.extend(line.pop_front());
            let is_empty = line.is_empty();
            if let Some(sender) = self.order.pop_front() {
                if is_empty {
                    self.lines.remove(&sender);
                } else {
                    self.order.push_back(sender);
                }
            }
        }
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::booking::{Identity, NewNames, Owner};
    use crate::store::booking::UsageRow;

    fn draft(tags: usize) -> Draft {
        let row = UsageRow { tags: vec![String::new(); tags], ..UsageRow::default() };
        Draft { row, owner: Owner::Given, identity: Identity::New, new_names: NewNames::Unlimited }
    }

    fn push(queue: &mut Queue, sender: &str, records: usize) {
        let drafts = vec![draft(0); records];
        queue.push(sender, Job { weight: records, drafts, reply: oneshot::channel().0 });
    }

    #[test]
    fn a_light_sender_is_served_before_the_second_job_of_a_heavy_one() {
        let mut queue = Queue::default();
        for _ in 0..3 {
            push(&mut queue, "heavy", 10_000);
        }
        push(&mut queue, "light", 1);
        let sizes = |queue: &mut Queue| queue.next().iter().map(|job| job.drafts.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&mut queue), [10_000]);
        assert_eq!(sizes(&mut queue), [1]);
        push(&mut queue, "light", 1);
        assert_eq!(sizes(&mut queue), [10_000]);
        assert_eq!(sizes(&mut queue), [1]);
        assert_eq!(sizes(&mut queue), [10_000]);
        assert!(queue.next().is_empty());
        assert!(queue.lines.is_empty());
    }

    #[test]
    fn records_with_many_tags_are_cut_into_pieces_of_one_transaction_each() {
        let batches = batches(vec![draft(100); 2500]);
        assert_eq!(batches.iter().map(|(drafts, _)| drafts.len()).sum::<usize>(), 2500);
        assert!(batches.iter().all(|(_, weight)| *weight <= MAX_WEIGHT));
        assert!(batches.len() > 10);
        assert_eq!(super::batches(vec![draft(0); MAX_RECORDS]).len(), 1);
    }
}
