//! Writes the JSON of a report while its data arrives, from the rollups or from the log. In a report by day, the data
//! must arrive day by day and, within a day, group by group: at any time, at most one group of one day is open. A
//! report by key lists keys and their models.

use chrono::NaiveDate;

use crate::http::error::ApiError;
use crate::http::routes::report::Grouping;
use crate::http::stream::writer::name;
use crate::http::stream::writer::{Text, Writer};
use crate::store::report::DayRow;

/// Usage of one key on one model, within one group and day.
pub(super) struct Usage<'a> {
    pub(super) model: Text<'a>,
    pub(super) api_key: Text<'a>,
    /// Spend in USD.
    pub(super) spend: f64,
    pub(super) total_tokens: i64,
}

/// Writes the days of a report. `G` identifies a group within a day. After the last usage, the caller must call
/// [`DaysWriter::close_day`].
pub(super) struct DaysWriter<'a, G> {
    grouping: &'a Grouping,
    day: Option<NaiveDate>,
    group: Option<G>,
    /// Spend of the open group so far, in USD.
    total: f64,
}

impl<'a, G: PartialEq> DaysWriter<'a, G> {
    pub(super) fn new(grouping: &'a Grouping) -> Self {
        Self { grouping, day: None, group: None, total: 0.0 }
    }

    /// Writes usage of one group on one day. If another group or day is open, closes it first and opens the right one.
    /// `names` writes the fields that identify a new group, such as `team_name`.
    pub(super) fn write(
        &mut self,
        writer: &mut Writer,
        day: NaiveDate,
        group: G,
        names: impl FnOnce(&mut Writer, &G) -> Result<(), ApiError>,
        usage: &Usage<'_>,
    ) -> Result<(), ApiError> {
        if self.day != Some(day) {
            self.close_day(writer);
            self.day = Some(day);
            writer.open_object();
            writer.name(name!("group_by_day"));
            writer.value(&format_args!("{day}T00:00:00+00:00"))?;
            writer.name(self.grouping.list_name());
            writer.open_list();
        }
        if self.group.as_ref() != Some(&group) {
            self.close_group(writer);
            writer.open_object();
            names(writer, &group)?;
            writer.name(name!("metadata"));
            writer.open_list();
            self.group = Some(group);
        }
        self.total += usage.spend;
        writer.open_object();
        writer.name(name!("model"));
        writer.text(usage.model)?;
        writer.name(name!("spend"));
        writer.amount(usage.spend);
        writer.name(name!("api_key"));
        writer.text(usage.api_key)?;
        writer.name(name!("total_tokens"));
        writer.integer(usage.total_tokens);
        writer.close();
        Ok(())
    }

    fn close_group(&mut self, writer: &mut Writer) {
        if self.group.take().is_some() {
            // Closes the list `metadata`. The call at the end closes the group.
            writer.close();
            writer.name(name!("total_spend"));
            writer.amount(std::mem::take(&mut self.total));
            writer.close();
        }
    }

    /// Closes the open group and the open day, if there are any.
    pub(super) fn close_day(&mut self, writer: &mut Writer) {
        self.close_group(writer);
        if self.day.take().is_some() {
            // Closes the list of groups, then the day.
            writer.close();
            writer.close();
        }
    }
}

impl DaysWriter<'_, (Option<String>, Option<String>)> {
    /// Writes a row that was read from the log. Its team and its member (end user, user or model) identify the group.
    pub(super) fn write_row(&mut self, writer: &mut Writer, row: DayRow) -> Result<(), ApiError> {
        let (has_teams, member_name) = (self.grouping.has_teams(), self.grouping.member_name());
        let names = |writer: &mut Writer, (team, member): &(Option<String>, Option<String>)| {
            if has_teams {
                writer.name(name!("team_name"));
                writer.value(team)?;
            }
            if let Some(name) = member_name {
                writer.name(name);
                writer.value(member)?;
            }
            Ok(())
        };
        let usage = Usage {
            model: Text::Plain(&row.model),
            api_key: Text::Plain(&row.api_key),
            spend: row.spend,
            total_tokens: row.total_tokens,
        };
        self.write(writer, row.day, (row.team_name, row.member), names, &usage)
    }
}

/// Opens a key in a report by key: writes its sums and opens its list of models. `spend` is in USD. `tokens` are the
/// prompt tokens and the completion tokens.
pub(super) fn open_key(writer: &mut Writer, key: Text<'_>, spend: f64, tokens: (i64, i64)) -> Result<(), ApiError> {
    writer.open_object();
    writer.name(name!("api_key"));
    writer.text(key)?;
    write_sums(writer, spend, tokens);
    writer.name(name!("model_details"));
    writer.open_list();
    Ok(())
}

/// Closes the list of models, then the key.
pub(super) fn close_key(writer: &mut Writer) {
    writer.close();
    writer.close();
}

/// Writes the spend and the tokens of the open key on one model. The parameters are as in [`open_key`].
pub(super) fn write_model(
    writer: &mut Writer,
    model: Text<'_>,
    spend: f64,
    tokens: (i64, i64),
) -> Result<(), ApiError> {
    writer.open_object();
    writer.name(name!("model"));
    writer.text(model)?;
    write_sums(writer, spend, tokens);
    writer.close();
    Ok(())
}

fn write_sums(writer: &mut Writer, spend: f64, (prompt, completion): (i64, i64)) {
    writer.name(name!("total_cost"));
    writer.amount(spend);
    writer.name(name!("total_input_tokens"));
    writer.integer(prompt);
    writer.name(name!("total_output_tokens"));
    writer.integer(completion);
}
