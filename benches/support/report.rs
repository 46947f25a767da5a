//! [`Report`]: measurements as tables for people, or as JSON.
//!
//! Measurements are never judged here.

use std::{fmt, time::Duration};

use serde_json::{Map, Value, json};

/// The measurements of one scenario.
#[derive(Debug)]
pub struct Report {
    title: String,
    tables: Vec<Table>,
    notes: Vec<String>,
}

/// Rows of measurements. The name of a column includes its unit.
#[derive(Debug)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
}

impl Report {
    /// One without tables.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), tables: Vec::new(), notes: Vec::new() }
    }

    /// Adds a table.
    pub fn table(mut self, table: Table) -> Self {
        self.tables.push(table);
        self
    }

    /// Adds a line below the tables.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// As JSON: each row an object.
    pub fn json(&self) -> Value {
        let table = |table: &Table| -> Vec<Value> {
            let object = |row: &Vec<Value>| {
                let cells = table.columns.iter().zip(row).map(|(column, cell)| ((*column).to_owned(), cell.clone()));
                Value::Object(cells.collect::<Map<_, _>>())
            };
            table.rows.iter().map(object).collect()
        };
        json!({"title": self.title, "tables": self.tables.iter().map(table).collect::<Vec<_>>(), "notes": self.notes})
    }
}

impl Table {
    /// One without rows.
    pub fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column.
    pub fn row<const N: usize>(&mut self, cells: [Value; N]) {
        self.rows.push(cells.to_vec());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.title)?;
        for table in &self.tables {
            writeln!(f, "{table}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<Vec<String>> = vec![self.columns.iter().map(|column| (*column).to_owned()).collect()];
        lines.extend(self.rows.iter().map(|row| row.iter().map(shown).collect()));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        for line in lines {
            for (index, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Names on the left, numbers on the right.
                if index == 0 { write!(f, "\n  {cell:<width$}")? } else { write!(f, "  {cell:>width$}")? }
            }
        }
        Ok(())
    }
}

/// A number with three significant digits.
pub fn figure(value: f64) -> Value {
    let scale = if value.abs() >= 100.0 {
        1.0
    } else if value.abs() >= 10.0 {
        10.0
    } else {
        100.0
    };
    json!((value * scale).round() / scale)
}

/// Microseconds per item; null if there were none.
pub fn micros_each(time: Duration, of: u64) -> Value {
    if of == 0 { Value::Null } else { figure(time.as_secs_f64() * 1e6 / of as f64) }
}

/// Percent of one core.
pub fn percent(cpu: Duration, of: Duration) -> Value {
    figure(100.0 * cpu.as_secs_f64() / of.as_secs_f64())
}

/// This quantile of sorted microseconds, in milliseconds.
pub fn quantile_ms(sorted: &[u32], quantile: f64) -> Value {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or(Value::Null, |micros| figure(f64::from(*micros) / 1e3))
}

/// MiB.
pub fn mib(bytes: u64) -> Value {
    figure(bytes as f64 / f64::from(1 << 20))
}

fn shown(cell: &Value) -> String {
    match cell {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.as_f64().is_some_and(|value| value.fract() == 0.0) => {
            format!("{:.0}", number.as_f64().unwrap_or_default())
        }
        other => other.to_string(),
    }
}
