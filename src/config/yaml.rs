//! YAML text into a small tree that keeps lines and quoting.
//!
//! The contract is YAML 1.1 as Go reads it, where a plain `yes` is a boolean in one place and the string "true" in
//! another. A serde data model has lost the quoting by then, so the tree is built from the parser's events and
//! [`super::scalar`] interprets its scalars where the wanted type is known.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::scalar;

/// What a document may cost, alias expansion included: the bytes of its text and [`NODE_COST`] for each node. A
/// ConfigMap holds at most 1 MiB; what expands to more than this is an alias bomb or not a configuration.
const MAX_COST: usize = 16 << 20;

/// A rough size of a node in memory.
const NODE_COST: usize = 64;

/// Deeper than any setting by far, and shallow enough that a recursive walk (or drop) never endangers the stack.
const MAX_DEPTH: usize = 64;

/// Longer than any setting, and than the key of a label (317), and short enough to be in the path to everything below it.
const MAX_KEY_BYTES: usize = 512;

/// A node and the line that it starts on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Counted from 1.
    pub(super) line: u64,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A scalar as written, escapes resolved.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Whether it is interpreted (`yes`, `010`, `null`), as opposed to quoted or tagged as a string.
    pub(super) plain: bool,
    pub(super) style: ScalarStyle,
}

/// One `key: value` of a mapping, in the order of the text; a merge key (`<<`) is replaced by what it brings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// The line of the key.
    pub(super) line: u64,
    /// Whether it came in through a merge key.
    pub(super) merged: bool,
    pub(super) value: Node,
}

/// Why a text is no YAML that we read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SyntaxError {
    pub(super) line: u64,
    pub(super) message: String,
}

impl Node {
    /// The node of an empty document.
    pub(super) fn null(line: u64) -> Self {
        let scalar = Scalar {
            text: String::new(),
            plain: true,
            style: ScalarStyle::Plain,
        };
        Self {
            line,
            value: Value::Scalar(scalar),
        }
    }

    /// Whether this is an absent value: empty, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(s) if s.plain && scalar::resolve(&s.text) == scalar::Resolved::Null)
    }

    fn size(&self) -> Size {
        let children = match &self.value {
            Value::Scalar(s) => Size {
                cost: s.text.len(),
                depth: 0,
            },
            Value::List(items) => items.iter().fold(Size::default(), |sum, item| sum.beside(item.size())),
            Value::Map(entries) => entries.iter().fold(Size::default(), |sum, entry| {
                sum.beside(Size {
                    cost: entry.key.len() + NODE_COST,
                    depth: 0,
                })
                .beside(entry.value.size())
            }),
        };
        Size {
            cost: children.cost + NODE_COST,
            depth: children.depth + 1,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    cost: usize,
    depth: usize,
}

impl Size {
    fn beside(self, other: Self) -> Self {
        Self {
            cost: self.cost.saturating_add(other.cost),
            depth: self.depth.max(other.depth),
        }
    }
}

/// The only document of a text; nothing but comments is null.
pub(super) fn document(text: &str) -> Result<Node, SyntaxError> {
    let mut documents = documents(text)?;
    if documents.len() > 1 {
        let message = "a second document starts here; remove the `---`".to_owned();
        return Err(SyntaxError {
            line: documents[1].line,
            message,
        });
    }
    Ok(documents.pop().unwrap_or_else(|| Node::null(1)))
}

/// All documents of a text.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|err| syntax_error(&err))?;
        builder.event(event, &span)?;
    }
    Ok(builder.documents)
}

/// A collection that has not ended yet.
struct Open {
    line: u64,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<Key> },
}

/// A key whose value has not come yet.
struct Key {
    text: String,
    line: u64,
    merge: bool,
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, Size)>,
    cost: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), SyntaxError> {
        let line = span.start.line() as u64;
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = is_interpreted(style, tag.as_deref());
                let scalar = Scalar {
                    text: text.into_owned(),
                    plain,
                    style,
                };
                self.charge(scalar.text.len(), line)?;
                self.finish(
                    Node {
                        line,
                        value: Value::Scalar(scalar),
                    },
                    anchor,
                )?;
            }
            Event::SequenceStart(_, anchor, _) => self.start(line, anchor, OpenKind::List(Vec::new()))?,
            Event::MappingStart(_, anchor, _) => {
                self.start(
                    line,
                    anchor,
                    OpenKind::Map {
                        entries: Vec::new(),
                        key: None,
                    },
                )?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let value = match open.kind {
                        OpenKind::List(items) => Value::List(items),
                        OpenKind::Map { entries, .. } => Value::Map(entries),
                    };
                    self.finish(Node { line: open.line, value }, open.anchor)?;
                }
            }
            Event::Alias(id) => self.alias(id, line)?,
            _ => {}
        }
        Ok(())
    }

    fn alias(&mut self, id: usize, line: u64) -> Result<(), SyntaxError> {
        let Some((node, size)) = self.anchors.get(&id) else {
            return Err(error(line, "this alias stands inside of what it refers to"));
        };
        // Checked before the copy is made.
        let cost = self.cost.saturating_add(size.cost);
        if cost > MAX_COST {
            return Err(too_large(line));
        }
        if self.open.len() + size.depth > MAX_DEPTH {
            return Err(too_deep(line));
        }
        let mut node = node.clone();
        // A scalar is looked for where it is used; what has lines of its own, where it is written.
        if matches!(&node.value, Value::Scalar(s) if s.style != ScalarStyle::Literal) {
            node.line = line;
        }
        self.cost = cost;
        self.place(node)
    }

    fn start(&mut self, line: u64, anchor: usize, kind: OpenKind) -> Result<(), SyntaxError> {
        self.charge(0, line)?;
        self.open.push(Open { line, anchor, kind });
        if self.open.len() >= MAX_DEPTH {
            Err(too_deep(line))
        } else {
            Ok(())
        }
    }

    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        if anchor != 0 {
            let size = node.size();
            self.charge(size.cost, node.line)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        self.place(node)
    }

    /// Puts a complete node where it belongs: it is a document, an item, a key or the value of one.
    fn place(&mut self, node: Node) -> Result<(), SyntaxError> {
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.documents.push(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, key }) => match key.take() {
                None => *key = Some(Key::from_node(node)?),
                Some(key) if key.merge => merge(entries, node)?,
                Some(Key { text, line, .. }) => {
                    entries.push(Entry {
                        key: text,
                        line,
                        merged: false,
                        value: node,
                    });
                }
            },
        }
        Ok(())
    }

    fn charge(&mut self, bytes: usize, line: u64) -> Result<(), SyntaxError> {
        self.cost = self.cost.saturating_add(bytes).saturating_add(NODE_COST);
        if self.cost > MAX_COST {
            return Err(too_large(line));
        }
        Ok(())
    }
}

impl Key {
    /// Go's JSON conversion turns a key into text like a value in a string position, but has none for null.
    fn from_node(node: Node) -> Result<Self, SyntaxError> {
        let line = node.line;
        if node.is_null() {
            return Err(error(
                line,
                "a key is missing or null; if it is meant as a name, quote it",
            ));
        }
        match node.value {
            Value::Scalar(s) => {
                let merge = s.plain && s.text == "<<";
                let text = if s.plain {
                    scalar::to_text(&s.text).into_owned()
                } else {
                    s.text
                };
                if text.len() > MAX_KEY_BYTES {
                    return Err(error(line, &format!("a key is longer than {MAX_KEY_BYTES} bytes")));
                }
                Ok(Self { text, line, merge })
            }
            Value::List(_) | Value::Map(_) => Err(error(
                line,
                "a list or a map cannot be a key; if it is meant as text, quote it",
            )),
        }
    }
}

/// `<<: map` or `<<: [map, …]`, of which the first that has a key wins.
fn merge(entries: &mut Vec<Entry>, node: Node) -> Result<(), SyntaxError> {
    let line = node.line;
    let sources = match node.value {
        Value::List(items) => items,
        Value::Map(_) => vec![node],
        Value::Scalar(_) => Vec::new(),
    };
    if sources.is_empty() {
        return Err(error(
            line,
            "`<<` takes a map, or a list of maps, usually as an alias such as `<<: *defaults`",
        ));
    }
    for source in sources.into_iter().rev() {
        let Value::Map(merged) = source.value else {
            return Err(error(source.line, "`<<` takes maps only"));
        };
        entries.extend(merged.into_iter().map(|entry| Entry { merged: true, ..entry }));
    }
    Ok(())
}

/// A tag of the core schema overrules the style; any other tag makes a scalar text.
fn is_interpreted(style: ScalarStyle, tag: Option<&Tag>) -> bool {
    match tag.map(Tag::core_suffix) {
        None => style == ScalarStyle::Plain,
        Some(suffix) => matches!(suffix, Some("int" | "float" | "bool" | "null")),
    }
}

fn syntax_error(err: &ScanError) -> SyntaxError {
    let (line, column) = (err.marker().line() as u64, err.marker().col() + 1);
    let hint = match err.kind() {
        // The parser looks ahead, and meets its own limit before an event has told of the depth.
        ErrorKind::RecursionLimitExceeded => return too_deep(line),
        // `namePattern: *` and `namePattern: [a-c]*`.
        ErrorKind::UnknownAnchor | ErrorKind::MissingAnchorOrAliasName | ErrorKind::UnexpectedCharacter { .. } => {
            "; quote a text with special characters"
        }
        ErrorKind::MappingValueNotAllowed | ErrorKind::SimpleKeyExpected | ErrorKind::ExpectedBlockMappingKey => {
            "; check the indentation, and that a space follows each colon"
        }
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation => "; indent with spaces",
        _ => "",
    };
    error(line, &format!("not valid YAML (column {column}): {}{hint}", err.info()))
}

fn too_large(line: u64) -> SyntaxError {
    let limit = MAX_COST >> 20;
    error(
        line,
        &format!("too large: with its aliases expanded it takes more than {limit} MiB"),
    )
}

fn too_deep(line: u64) -> SyntaxError {
    error(line, &format!("nested deeper than {MAX_DEPTH} levels"))
}

fn error(line: u64, message: &str) -> SyntaxError {
    SyntaxError {
        line,
        message: message.to_owned(),
    }
}
