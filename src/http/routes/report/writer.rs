//! The parts of a report in JSON. Days, their groups and the usage in these arrive in order, from whatever source; at any
//! time one group of one day is open.

use chrono::NaiveDate;

use crate::http::error::ApiError;
use crate::http::routes::report::Grouping;
use crate::http::stream::writer::{Text, Writer};
use crate::store::report::DayRow;

/// What one key spent on one model.
pub(super) struct Usage<'a> {
    pub(super) model: Text<'a>,
    pub(super) api_key: Text<'a>,
    /// USD.
    pub(super) spend: f64,
    pub(super) total_tokens: i64,
}

/// Writes days. `G` tells the groups of a day apart.
pub(super) struct DaysWriter<'a, G> {
    grouping: &'a Grouping,
    day: Option<NaiveDate>,
    group: Option<G>,
    /// USD of the open group.
    total: f64,
}

impl<'a, G: PartialEq> DaysWriter<'a, G> {
    pub(super) fn new(grouping: &'a Grouping) -> Self {
        Self { grouping, day: None, group: None, total: 0.0 }
    }

    /// Writes usage of a group of a day; closes the group and the day before it, where it belongs to others. `names`
    /// writes the fields that name the group.
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
            writer.name("group_by_day");
            writer.value(&format_args!("{day}T00:00:00+00:00"))?;
            writer.name(self.grouping.list_name());
            writer.open_list();
        }
        if self.group.as_ref() != Some(&group) {
            self.close_group(writer);
            writer.open_object();
            names(writer, &group)?;
            writer.name("metadata");
            writer.open_list();
            self.group = Some(group);
        }
        self.total += usage.spend;
        writer.open_object();
        writer.name("model");
        writer.text(usage.model)?;
        writer.name("spend");
        writer.amount(usage.spend);
        writer.name("api_key");
        writer.text(usage.api_key)?;
        writer.name("total_tokens");
        writer.integer(usage.total_tokens);
        writer.close();
        Ok(())
    }

    fn close_group(&mut self, writer: &mut Writer) {
        if self.group.take().is_some() {
            writer.close();
            writer.name("total_spend");
            writer.amount(std::mem::take(&mut self.total));
            writer.close();
        }
    }

    /// Closes the day that is open, if one is.
    pub(super) fn close_day(&mut self, writer: &mut Writer) {
        self.close_group(writer);
        if self.day.take().is_some() {
            writer.close();
            writer.close();
        }
    }
}

impl DaysWriter<'_, (Option<String>, Option<String>)> {
    /// Writes a row of the log's report.
    pub(super) fn write_row(&mut self, writer: &mut Writer, row: DayRow) -> Result<(), ApiError> {
        let (has_teams, member_name) = (self.grouping.has_teams(), self.grouping.member_name());
        let names = |writer: &mut Writer, (team, member): &(Option<String>, Option<String>)| {
            if has_teams {
                writer.name("team_name");
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

/// Opens a key of the report by key, at its models. `tokens` are those of prompts and of completions.
pub(super) fn open_key(writer: &mut Writer, key: Text<'_>, spend: f64, tokens: (i64, i64)) -> Result<(), ApiError> {
    writer.open_object();
    writer.name("api_key");
    writer.text(key)?;
    write_sums(writer, spend, tokens);
    writer.name("model_details");
    writer.open_list();
    Ok(())
}

/// Closes the key that is open.
pub(super) fn close_key(writer: &mut Writer) {
    writer.close();
    writer.close();
}

/// Writes what the open key spent on one model.
pub(super) fn write_model(
    writer: &mut Writer,
    model: Text<'_>,
    spend: f64,
    tokens: (i64, i64),
) -> Result<(), ApiError> {
    writer.open_object();
    writer.name("model");
    writer.text(model)?;
    write_sums(writer, spend, tokens);
    writer.close();
    Ok(())
}

fn write_sums(writer: &mut Writer, spend: f64, (prompt, completion): (i64, i64)) {
    writer.name("total_cost");
    writer.amount(spend);
    writer.name("total_input_tokens");
    writer.integer(prompt);
    writer.name("total_output_tokens");
    writer.integer(completion);
}
