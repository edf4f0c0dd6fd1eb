//! Which archived rows a page needs, and their bounds.

use litespend_archive::Order;

use crate::books::Error;
use crate::store::log::filter::Outcomes;
use crate::store::log::pages;
use crate::store::log::pages::{SessionCursor, SortKey};

/// Bounds of the archived rows of one page.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most rows that stand beside the log. Lists of sessions have no such bound: of each session, two rows are needed at
    /// most, and the others are removed.
    pub beside: i64,
    /// The most bytes of long columns that are put beside the log.
    pub bytes: usize,
    /// The most rows that are looked at.
    pub read: usize,
    /// Rows after which the database is asked again whether there are enough sessions, which rows come first, or which rows
    /// sessions need.
    pub look: i64,
}

impl Limits {
    /// The bounds of every page that a server answers.
    pub const OF_PAGE: Self = Self { beside: 100_000, bytes: 1024 * 1024 * 1024, read: 500_000, look: 10_000 };

    /// The number of rows at which those that no session needs are removed next, if `rows` are left. It grows with them, so
    /// that each removal is worth its time.
    pub(super) fn next_removal(self, rows: i64) -> i64 {
        rows.saturating_add(rows.max(self.look))
    }
}

/// The archived rows that a page is made of.
#[derive(Clone, Copy, Debug)]
pub enum Needed<'a> {
    /// All rows that match.
    All(Outcomes),
    /// The rows that come first in an order.
    First(pages::Order, i64),
    /// The rows that say what all sessions are: of each session, the one that represents it, and the newest.
    Sessions,
    /// The rows of the sessions that come first when the newest activity does.
    NewestSessions {
        /// Only sessions after the cursor are shown.
        after: Option<&'a SessionCursor>,
        /// How many sessions are counted from the start of the list, those before the cursor among them. They are fewer, but
        /// never fewer than `shown`, if that would take too many rows.
        counted: i64,
        /// How many the page needs in any case.
        shown: i64,
    },
}

impl Needed<'_> {
    pub(super) fn outcomes(self) -> Outcomes {
        match self {
            Self::All(outcomes) => outcomes,
            Self::First(..) => Outcomes::OfRows,
            Self::Sessions | Self::NewestSessions { .. } => Outcomes::OfSessions,
        }
    }

    /// Whether rows that are neither the newest of their session nor represent it can be left out.
    pub(super) fn is_of_sessions(self) -> bool {
        matches!(self, Self::Sessions | Self::NewestSessions { .. })
    }

    /// The order in which rows are read.
    pub(super) fn order(self) -> Order {
        match self {
            Self::First(pages::Order { key: SortKey::StartTime, ascending: true }, _) => Order::Ascending,
            _ => Order::Descending,
        }
    }
}

/// The refusal of a page that needs too many rows.
pub(super) fn too_many(what: String) -> Error {
    Error::Refused(format!("{what}: choose a shorter time or further filters, or set archive=false"))
}
