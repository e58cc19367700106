//! Reads tables of captions: CSV, TSV, or JSON Lines, with the name of a picture and its caption in
//! each row.
//!
//! The format follows from the first line of the text, not from the name of the file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use csv::StringRecord;
use serde_json::{Map, Value};
use tessera_text::normalise;

use crate::text_file::read_text;

/// The customary names of the column with the pictures' file names; the first that exists is used.
const IMAGE_COLUMNS: &[&str] = &[
    "file_name",
    "filename",
    "file",
    "image",
    "image_file",
    "image_path",
    "image_name",
    "img",
    "path",
    "file_path",
    "filepath",
    "key",
];
/// The customary names of the column with the captions; the first that exists is used.
const TEXT_COLUMNS: &[&str] =
    &["text", "caption", "captions", "prompt", "description", "sentence", "comment"];
/// The maximum number of columns that a message lists.
const LISTED: usize = 12;
/// The maximum number of lines of a field. With more, a closing quote is probably missing.
const FIELD_LINES: usize = 10;

/// The columns of a table; `None` stands for the first customary name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) image: Option<&'a str>,
    pub(super) text: Option<&'a str>,
}

/// A table of captions.
pub(super) struct Table {
    pub(super) path: PathBuf,
    pub(super) rows: Vec<Row>,
}

/// A row of a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The line of the file, from 1.
    pub(super) line: u64,
    /// The name of the picture as the table has it.
    pub(super) image: String,
    pub(super) captions: Vec<String>,
}

impl Table {
    /// Reads the table `path`.
    ///
    /// # Errors
    /// If the file is no table, a column is missing, or a row cannot be read.
    pub(super) fn read(path: &Path, columns: Columns) -> Result<Table> {
        let text = read_text(path)?;
        let name = path.display();
        let rows = match text.trim_start().chars().next() {
            None => {
                bail!("{name} is empty; wanted a line with the names of the columns, and one per picture")
            }
            Some('{') => json_rows(&text, columns),
            Some('[') => bail!(
                "{name} is a JSON array; wanted JSON Lines (one object per line), CSV or TSV: \
                 `jq -c '.[]' FILE` converts it"
            ),
            Some(_) => csv_rows(&text, columns),
        };
        let rows = rows.with_context(|| name.to_string())?;
        ensure!(!rows.is_empty(), "{name} has no rows; wanted one per picture");
        Ok(Table { path: path.to_path_buf(), rows })
    }
}

/// Reads JSON Lines. The text is parsed twice, so that not all of its values are in memory.
fn json_rows(text: &str, columns: Columns) -> Result<Vec<Row>> {
    let mut names = BTreeSet::new();
    for object in json_objects(text) {
        names.extend(object?.1.into_iter().map(|(name, _)| name));
    }
    let names: Vec<String> = names.into_iter().collect();
    let [image, text_column] = columns.among(&names)?.map(|column| names[column].as_str());
    let row = |object: Result<(u64, Map<String, Value>)>| {
        let (line, object) = object?;
        let image = match object.get(image) {
            Some(Value::String(name)) => name.clone(),
            Some(Value::Number(number)) => number.to_string(),
            other => bail!(
                "line {line}: the column {image:?} is {}; wanted the name of a picture",
                other.map_or("missing".to_string(), Value::to_string)
            ),
        };
        let captions = object.get(text_column).map_or(Some(Vec::new()), captions_of);
        let captions = captions.with_context(|| {
            format!("line {line}: the column {text_column:?} is no text; wanted a text or a list of texts")
        })?;
        Ok(Row { line, image, captions })
    };
    json_objects(text).map(row).collect()
}

/// Iterates over the objects of JSON Lines with their line numbers.
fn json_objects(text: &str) -> impl Iterator<Item = Result<(u64, Map<String, Value>)>> {
    let lines = (1_u64..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| {
        let object = serde_json::from_str(line).with_context(|| {
            format!(
                "line {number} is no JSON object; wanted {{\"file_name\": \"...\", \"text\": \"...\"}} in one line"
            )
        })?;
        Ok((number, object))
    })
}

/// Returns the captions in a JSON value: a text, or a list of texts. Returns `None` for other
/// types. `null` and empty texts are no captions.
pub(super) fn captions_of(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(caption(text).into_iter().collect()),
        Value::Array(values) => {
            let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
            Some(texts?.into_iter().filter_map(caption).collect())
        }
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Returns a caption in one line, or `None` if the text is empty.
fn caption(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Some(lines.join(" ")).filter(|caption| !normalise(caption).is_empty())
}

/// Reads CSV or TSV. The first line contains the names of the columns.
fn csv_rows(text: &str, columns: Columns) -> Result<Vec<Row>> {
    let delimiter = delimiter(text);
    if let Some(line) = unclosed_quote(text, delimiter) {
        bail!(
            "line {line}: a field begins with a quote (\") that is not closed; wanted one at its end, and two (\"\") for each \
             quote inside it"
        );
    }
    let mut reader = csv::ReaderBuilder::new();
    // TSV has no quotes: a caption may begin with one.
    reader.delimiter(delimiter).quoting(delimiter != b'\t').has_headers(false).flexible(true);
    let mut reader = reader.from_reader(text.as_bytes());
    let mut records = reader.records();
    let header = records.next().context("it is empty")??;
    let names: Vec<String> = header.iter().map(|name| unquoted(name).trim().to_string()).collect();
    let [image, text_column] = columns.among(&names)?;
    let mut rows = Vec::new();
    for record in records {
        let record = record?;
        if record.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        let line = line_of(&record, text);
        check_record(&record, names.len()).with_context(|| format!("line {line}"))?;
        let field = |column| unquoted(record.get(column).unwrap_or_default());
        let name = field(image).trim().to_string();
        ensure!(
            !name.is_empty(),
            "line {line}: the column {:?} is empty; wanted the name of a picture",
            names[image]
        );
        rows.push(Row { line, image: name, captions: caption(&field(text_column)).into_iter().collect() });
    }
    Ok(rows)
}

/// Returns the line of a record. Its position is at the end of the record before it, so there may be
/// line breaks between.
fn line_of(record: &StringRecord, text: &str) -> u64 {
    let (line, start) = record.position().map_or((0, 0), |position| (position.line(), position.byte()));
    let rest = text.as_bytes().get(start as usize..).unwrap_or_default();
    let breaks = rest.iter().take_while(|byte| b"\r\n".contains(byte));
    line + breaks.filter(|&&byte| byte == b'\n').count() as u64
}

/// Checks that a record has as many fields as there are columns.
fn check_record(record: &StringRecord, n_columns: usize) -> Result<()> {
    let has_more = record.iter().skip(n_columns).any(|field| !field.trim().is_empty());
    ensure!(
        record.len() >= n_columns && !has_more,
        "{} fields, wanted {n_columns}, as many as there are columns; a caption with a comma must be in quotes (\")",
        record.len()
    );
    let n_lines = record.iter().map(|field| field.lines().count()).max().unwrap_or_default();
    ensure!(
        n_lines <= FIELD_LINES,
        "a field of {n_lines} lines, wanted at most {FIELD_LINES}; probably a closing quote (\") is missing"
    );
    Ok(())
}

/// Returns the line of the first field of CSV whose closing quote is missing. Such a field ends with
/// the text, or in a later line at the opening quote of another field.
fn unclosed_quote(text: &str, delimiter: u8) -> Option<usize> {
    let (bytes, mut at) = (text.as_bytes(), 0);
    let is_end = |byte: u8| byte == delimiter || byte == b'\n' || byte == b'\r';
    while delimiter != b'\t' && at < bytes.len() {
        if bytes[at] == b'"' {
            let length = quoted_length(&bytes[at..]);
            let is_closed = length.is_some_and(|length| {
                let has_lines = text[at..at + length].contains('\n');
                !has_lines || bytes.get(at + length).is_none_or(|&byte| is_end(byte))
            });
            if !is_closed {
                return Some(text[..at].matches('\n').count() + 1);
            }
            at += length.unwrap_or_default();
        }
        // To the start of the next field.
        at += bytes[at..].iter().position(|&byte| is_end(byte)).map_or(bytes.len() - at, |end| end + 1);
    }
    None
}

/// Returns the length of a quoted text up to its closing quote. Two quotes in a row are part of it.
fn quoted_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += bytes[at..].iter().position(|&byte| byte == b'"')? + 1;
        if bytes.get(at) != Some(&b'"') {
            return Some(at);
        }
        at += 1;
    }
}

/// Returns the most frequent delimiter in the first line.
fn delimiter(text: &str) -> u8 {
    let header = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let count = |delimiter: &u8| header.bytes().filter(|byte| byte == delimiter).count();
    // Of several maxima the last counts.
    b"|;\t,".iter().copied().max_by_key(count).unwrap_or(b',')
}

/// Returns a field of TSV without the quotes that some programs put around it.
fn unquoted(field: &str) -> String {
    match field.strip_prefix('"').and_then(|field| field.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => field.to_string(),
    }
}

impl Columns<'_> {
    /// Returns the positions of the columns of pictures and captions among `names`.
    fn among(self, names: &[String]) -> Result<[usize; 2]> {
        let image = position(names, self.image, IMAGE_COLUMNS, "--image-column", "the pictures' file names")?;
        let text = position(names, self.text, TEXT_COLUMNS, "--text-column", "the captions")?;
        ensure!(image != text, "the column {:?} cannot contain both file names and captions", names[image]);
        Ok([image, text])
    }
}

/// Returns the position of the column `asked`, or else of the first customary one.
fn position(
    names: &[String],
    asked: Option<&str>,
    customary: &[&str],
    flag: &str,
    content: &str,
) -> Result<usize> {
    let plain = |name: &str| name.trim().to_lowercase().replace([' ', '-'], "_");
    let find = |wanted: &str| {
        let exact = names.iter().position(|name| name == wanted);
        exact.or_else(|| names.iter().position(|name| plain(name) == plain(wanted)))
    };
    let listed: Vec<String> = names.iter().take(LISTED).map(|name| format!("{name:?}")).collect();
    let more = if names.len() > LISTED { ", ..." } else { "" };
    let has = format!("the columns are {}{more}", listed.join(", "));
    match asked {
        Some(asked) => find(asked).with_context(|| format!("no column {asked:?} ({flag}); {has}")),
        None => customary.iter().find_map(|name| find(name)).with_context(|| {
            format!("no column with {content}; {has}; wanted {}, or {flag} NAME", customary.join(", "))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUSTOMARY: Columns = Columns { image: None, text: None };

    fn read(text: &str, columns: Columns) -> Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        std::fs::write(&path, text).unwrap();
        Table::read(&path, columns).map(|table| table.rows)
    }

    /// Returns `image: caption | caption` for each row.
    fn rows(text: &str) -> Vec<String> {
        let rows = read(text, CUSTOMARY).unwrap();
        rows.iter().map(|row| format!("{}: {}", row.image, row.captions.join(" | "))).collect()
    }

    fn error(text: &str, columns: Columns) -> String {
        let error = format!("{:#}", read(text, columns).unwrap_err());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn csv_and_tsv_are_read() {
        let wanted = ["a.png: a \"red\" cat, sitting", "b.png: dog", "c.png: "];
        let comma =
            "file_name,id,text\na.png,1,\"a \"\"red\"\" cat,\nsitting\"\n\nb.png,2,dog\nc.png,3,\n,,\n";
        assert_eq!(rows(comma), wanted);
        assert_eq!(rows(&comma.replace('\n', "\r\n")), wanted);
        assert_eq!(
            rows("id;Caption;File Name\n1;\"a \"\"red\"\" cat, sitting\";a.png\n2;dog;b.png;;\n3;;c.png\n"),
            wanted
        );
        assert_eq!(rows("image\tcaption\na.png\ta \"red\" cat, sitting\nb.png\t\"dog\"\nc.png\t\n"), wanted);
        assert_eq!(
            rows(
                "image_name| comment_number| comment\na.png| 0| a \"red\" cat, sitting\nb.png| 0| dog\nc.png|0|"
            ),
            wanted
        );
    }

    #[test]
    fn quotes_in_tsv_are_part_of_the_caption() {
        let text = "image\tcaption\na.png\t\"to be\" or not\nb.png\t\"open\nc.png\t\"a \"\"c\"\"\"\n";
        assert_eq!(rows(text), ["a.png: \"to be\" or not", "b.png: \"open", "c.png: a \"c\""]);
    }

    #[test]
    fn closed_quotes_are_no_error() {
        let text = "file,text\r\n\"a.png\",\"a\r\n\"\"red\"\" cat\"\r\nb.png,12\" vinyl\r\nc.png,\"to be\" or not\r\n\"d.png\",\"\"";
        let wanted = ["a.png: a \"red\" cat", "b.png: 12\" vinyl", "c.png: to be or not", "d.png: "];
        assert_eq!(rows(text), wanted);
    }

    #[test]
    fn json_lines_are_read() {
        let text = r#"
            {"file_name": "a.png", "text": "a\ncat", "width": 3}
            {"text": ["one", " ", "two"], "file_name": "b.png"}

            {"file_name": 12, "text": null}
            {"file_name": "d.png"}
        "#;
        assert_eq!(rows(text), ["a.png: a cat", "b.png: one | two", "12: ", "d.png: "]);
        assert_eq!(rows(r#"{"image":"a.png","caption":"cat"}"#), ["a.png: cat"]);
        let lines: Vec<u64> = read(text, CUSTOMARY).unwrap().iter().map(|row| row.line).collect();
        assert_eq!(lines, [2, 3, 5, 6]);
    }

    #[test]
    fn named_columns_take_precedence() {
        let text = "text,caption,file_name,photo\nid7,a cat,x,a.png\n";
        let columns = Columns { image: Some("Photo"), text: Some("caption") };
        assert_eq!(
            read(text, columns).unwrap()[0],
            Row { line: 2, image: "a.png".into(), captions: vec!["a cat".into()] }
        );
        assert_eq!(rows(text), ["x: id7"]);
    }

    #[test]
    fn missing_columns_are_errors() {
        for text in ["id,words\n1,a cat\n", r#"{"id": 1, "words": "a cat"}"#] {
            let found = error(text, CUSTOMARY);
            for wanted in [
                "no column with the pictures' file names",
                r#"are "id", "words""#,
                "file_name, ",
                "--image-column",
            ] {
                assert!(found.contains(wanted), "{wanted}: {found}");
            }
            let found = error(text, Columns { image: Some("id"), text: None });
            assert!(
                found.contains("no column with the captions") && found.contains("--text-column NAME"),
                "{found}"
            );
            let found = error(text, Columns { image: Some("photo"), text: None });
            assert!(
                found.contains(r#"no column "photo" (--image-column); the columns are "id", "words""#),
                "{found}"
            );
            let same = error(text, Columns { image: Some("id"), text: Some("id") });
            assert!(same.contains("cannot contain both"), "{same}");
        }
    }

    #[test]
    fn damaged_tables_are_errors() {
        let long = format!("file,text\na.png,\"open\n{}\"\n", "b.png,dog\n".repeat(20));
        for (text, wanted) in [
            ("", "is empty; wanted a line with the names of the columns"),
            ("file,text\n", "has no rows"),
            ("[{\"file_name\": \"a.png\"}]", "JSON array; wanted JSON Lines"),
            ("{\"file_name\": \"a.png\",\n", "line 1 is no JSON object; wanted {\"file_name\""),
            ("{\"file\": \"a\", \"text\": \"b\"}\n7\n", "line 2 is no JSON object"),
            ("{\"file\": \"a\", \"text\": \"b\"}\n{\"file\": null}", "line 2: the column \"file\" is null"),
            (
                "{\"file\": \"a\", \"text\": 7}",
                "line 1: the column \"text\" is no text; wanted a text or a list",
            ),
            ("file,text\r\na.png,x\r\n\r\nb.png,a cat, sitting\r\n", "line 4: 3 fields"),
            ("file,text\na.png,a cat, sitting\n", "line 2: 3 fields, wanted 2, as many as there are columns"),
            ("file,id,text\na.png,1\n", "line 2: 2 fields, wanted 3"),
            ("file,text\n,a cat\n", "line 2: the column \"file\" is empty; wanted the name of a picture"),
            (
                "file,text\na.png,x\nb.png,\"open\nc.png,dog\n",
                "line 3: a field begins with a quote (\") that is not",
            ),
            ("file,text\na.png,\"open\nb.png,\"a dog\"\nc.png,cat\n", "line 2: a field begins with a quote"),
            (
                "file,text\n\"a.png\",\"open\n\"b.png\",\"a \"\"dog\"\"\"\n",
                "line 2: a field begins with a quote",
            ),
            ("\"file,text\na.png,cat\n", "line 1: a field begins with a quote"),
            (&long, "line 2: a field of 21 lines, wanted at most 10; probably a closing quote"),
        ] {
            assert!(error(text, CUSTOMARY).contains(wanted), "{wanted}: {}", error(text, CUSTOMARY));
        }
    }
}
