//! Reads Python pickles as data: a stack machine that builds values and executes no code.
//!
//! A pickle is a program that calls functions by name. This reader only records a call, as a
//! [`Value::Call`] with the name and the arguments; the caller of the reader decides what it means.
//! Opcodes that PyTorch's files do not need are errors.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

/// A value. Lists and dictionaries are reference-counted, since a pickle may fill them after it has
/// used them.
#[derive(Debug, Clone)]
pub enum Value {
    /// A value that no reader needs: `None`, a boolean or a float.
    Other,
    /// An integer.
    Int(i64),
    /// A string.
    Str(Rc<str>),
    /// A tuple.
    Tuple(Rc<[Value]>),
    /// A list.
    List(Rc<RefCell<Vec<Value>>>),
    /// A dictionary, in insertion order.
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    /// A function or class, as `module name`.
    Global(Rc<str>),
    /// A call of a function or class, with the state that was set on the result.
    Call(Rc<Call>),
    /// A reference to an object outside of the pickle (a persistent id).
    Outside(Rc<Value>),
}

/// A recorded call.
#[derive(Debug)]
pub struct Call {
    /// The function or class, as `module name`.
    pub of: Rc<str>,
    /// The arguments.
    pub args: Value,
    /// The state that was set on the result; `Other` if there is none.
    pub state: RefCell<Value>,
    /// Entries that were added to the result as to a dictionary.
    pub items: RefCell<Vec<(Value, Value)>>,
}

impl Value {
    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The name of a function or class. A class may also be stored outside, together with its
    /// source code: (`module`, class, file, text).
    fn name(&self) -> Option<Rc<str>> {
        match self {
            Value::Global(name) => Some(Rc::clone(name)),
            Value::Outside(class) => match &class.elements()[..] {
                [Value::Str(kind), Value::Global(name), ..] if &**kind == "module" => Some(Rc::clone(name)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The value as a size, if it is a non-negative integer.
    pub fn as_size(&self) -> Option<usize> {
        match self {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The elements of a tuple or list; empty for any other value.
    pub fn elements(&self) -> Vec<Value> {
        match self {
            Value::Tuple(values) => values.to_vec(),
            Value::List(values) => values.borrow().clone(),
            _ => Vec::new(),
        }
    }

    /// The entries of a dictionary, or of a call result that was filled like one; empty for any
    /// other value.
    pub fn entries(&self) -> Vec<(Value, Value)> {
        match self {
            Value::Dict(entries) => entries.borrow().clone(),
            Value::Call(call) => call.items.borrow().clone(),
            _ => Vec::new(),
        }
    }

    /// The value of a dictionary at `key`.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.entries().into_iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
    }
}

/// The limit on containers and calls in a pickle, and so on their nesting: ten times what a model
/// has, and few enough that freeing a nested chain of them does not overflow the stack.
const MAX_CONTAINERS: usize = 1 << 14;
/// The limit on values on the stack or in the memo: far more than any model has, but they easily
/// fit into memory.
const MAX_VALUES: usize = 1 << 22;

/// The result of reading a pickle.
#[derive(Debug)]
pub struct Pickle {
    /// The value of the pickle.
    pub value: Value,
    /// The length of the pickle in bytes.
    pub len: usize,
    /// All its references to objects outside, including those that are not part of the value.
    pub outside: Vec<Rc<Value>>,
}

/// Reads the pickle at the start of `bytes`.
///
/// # Errors
/// If the pickle is truncated, too large, or has an unknown opcode.
pub fn read(bytes: &[u8]) -> Result<Pickle> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        outside: Vec::new(),
        containers: 0,
    };
    loop {
        let at = machine.at;
        let opcode = machine.take(1)?[0];
        if opcode == b'.' {
            let value = machine.pop()?;
            return Ok(Pickle { value, len: machine.at, outside: machine.outside });
        }
        machine.run(opcode).with_context(|| format!("the pickle's opcode 0x{opcode:02x} at byte {at}"))?;
        let values = machine.stack.len().max(machine.memo.len()).max(machine.marks.len());
        ensure!(
            values < MAX_VALUES && machine.containers < MAX_CONTAINERS,
            "the pickle has more values than any model"
        );
    }
}

/// The state of the stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// The heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    outside: Vec<Rc<Value>>,
    /// The number of containers and calls so far.
    containers: usize,
}

impl Machine<'_> {
    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.context("the pickle is cut short")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// The next `len` bytes as a little-endian number.
    fn number(&mut self, len: usize) -> Result<u64> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// The next `len` bytes as a string.
    fn text(&mut self, len: u64) -> Result<Rc<str>> {
        let bytes = self.take(usize::try_from(len)?)?;
        Ok(Rc::from(String::from_utf8_lossy(bytes)))
    }

    /// The string up to the next line break.
    fn line(&mut self) -> Result<Rc<str>> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').context("the pickle is cut short")?;
        let text = self.text(len as u64)?;
        self.at += 1;
        Ok(text)
    }

    fn pop(&mut self) -> Result<Value> {
        self.stack.pop().context("the pickle takes a value from an empty stack")
    }

    fn top(&self) -> Result<&Value> {
        self.stack.last().context("the pickle uses a value of an empty stack")
    }

    /// Removes all values above the last mark from the stack.
    fn since_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        Ok(self.stack.split_off(mark.context("the pickle misses a mark")?))
    }

    fn push(&mut self, value: Value) {
        use Value::{Call, Dict, List, Outside, Tuple};
        self.containers += usize::from(matches!(value, Tuple(_) | List(_) | Dict(_) | Call(_) | Outside(_)));
        self.stack.push(value);
    }

    /// Executes one opcode.
    fn run(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => drop(self.take(1)?), // protocol version
            0x95 => drop(self.take(8)?), // length of a frame
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => self.push(self.top()?.clone()),
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'J' | b'K' | b'M' | 0x8a => self.integer(opcode)?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e => self.string(opcode)?,
            b')' | b't' | 0x85..=0x87 => self.tuple(opcode)?,
            b']' => self.push(Value::List(Rc::default())),
            b'}' => self.push(Value::Dict(Rc::default())),
            b'a' | b'e' => self.append(opcode)?,
            b's' | b'u' => self.set(opcode)?,
            b'q' | b'r' | 0x94 => self.remember(opcode)?,
            b'h' | b'j' => {
                let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                let value = self.memo.get(&key).context("the memo has no such entry")?.clone();
                self.push(value);
            }
            b'c' => {
                let [module, name] = [self.line()?, self.line()?];
                self.push(Value::Global(Rc::from(format!("{module} {name}"))));
            }
            0x93 => {
                let [name, module] = [self.pop()?, self.pop()?];
                let (Some(module), Some(name)) = (module.as_str(), name.as_str()) else {
                    bail!("a name that is not a string")
                };
                self.push(Value::Global(Rc::from(format!("{module} {name}"))));
            }
            b'R' | 0x81 => {
                let [args, of] = [self.pop()?, self.pop()?];
                let of = of.name().context("a call of something that is not a function")?;
                self.push(Value::Call(Rc::new(Call {
                    of,
                    args,
                    state: RefCell::new(Value::Other),
                    items: RefCell::default(),
                })));
            }
            b'b' => {
                let state = self.pop()?;
                if let Value::Call(call) = self.top()? {
                    *call.state.borrow_mut() = state;
                }
            }
            b'Q' => {
                let value = Rc::new(self.pop()?);
                self.outside.push(Rc::clone(&value));
                self.push(Value::Outside(value));
            }
            _ => bail!("it is not one that PyTorch's files have"),
        }
        Ok(())
    }

    fn integer(&mut self, opcode: u8) -> Result<()> {
        let number = match opcode {
            b'J' => i64::from(self.number(4)? as u32 as i32),
            b'K' => self.number(1)? as i64,
            b'M' => self.number(2)? as i64,
            _ => {
                let len = self.number(1)? as usize;
                ensure!(len <= 8, "an integer of {len} bytes; wanted at most 8");
                let unused = 64 - 8 * len as u32;
                match len {
                    0 => 0,
                    _ => (self.number(len)? << unused).cast_signed() >> unused,
                }
            }
        };
        self.push(Value::Int(number));
        Ok(())
    }

    fn string(&mut self, opcode: u8) -> Result<()> {
        let width = match opcode {
            0x8c | b'U' | b'C' => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        };
        let len = self.number(width)?;
        let text = self.text(len)?;
        self.push(Value::Str(text));
        Ok(())
    }

    fn tuple(&mut self, opcode: u8) -> Result<()> {
        let values = match opcode {
            b')' => Vec::new(),
            b't' => self.since_mark()?,
            _ => {
                let start = self.stack.len().checked_sub(usize::from(opcode - 0x84));
                self.stack.split_off(start.context("a tuple of more values than are on the stack")?)
            }
        };
        self.push(Value::Tuple(values.into()));
        Ok(())
    }

    fn append(&mut self, opcode: u8) -> Result<()> {
        let values = if opcode == b'a' { vec![self.pop()?] } else { self.since_mark()? };
        if let Value::List(list) = self.top()? {
            list.borrow_mut().extend(values);
        }
        Ok(())
    }

    fn set(&mut self, opcode: u8) -> Result<()> {
        let flat = match opcode {
            b's' => {
                let [value, key] = [self.pop()?, self.pop()?];
                vec![key, value]
            }
            _ => self.since_mark()?,
        };
        let entries = flat.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        match self.top()? {
            Value::Dict(dict) => dict.borrow_mut().extend(entries),
            Value::Call(call) => call.items.borrow_mut().extend(entries),
            _ => bail!("entries for something that is not a dictionary"),
        }
        Ok(())
    }

    /// Stores the top of the stack in the memo.
    fn remember(&mut self, opcode: u8) -> Result<()> {
        let key = match opcode {
            b'q' => self.number(1)?,
            b'r' => self.number(4)?,
            _ => self.memo.len() as u64,
        };
        let value = self.top()?.clone();
        self.memo.insert(key, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Value {
        read(bytes).unwrap().value
    }

    #[test]
    fn dictionary_with_all_kinds_of_values_is_read() {
        // pickle.dumps({"a": [1, -2, 300, 2**40], "b": (True, None, 1.5), "c": ()}, protocol=2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01\x8a\x06\x00\x00\x00\x00\x00\x01e\
            X\x01\x00\x00\x00bq\x03\x88NG?\xf8\x00\x00\x00\x00\x00\x00\x87q\x04X\x01\x00\x00\x00cq\x05)u.";
        let dict = value(bytes);
        let numbers: Vec<i64> = dict
            .get("a")
            .unwrap()
            .elements()
            .iter()
            .map(|value| match value {
                Value::Int(number) => *number,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(numbers, [1, -2, 300, 1 << 40]);
        let others = dict.get("b").unwrap().elements();
        assert!(matches!(others[..], [Value::Other, Value::Other, Value::Other]));
        assert!(dict.get("c").unwrap().elements().is_empty() && dict.get("d").is_none());
    }

    #[test]
    fn call_is_recorded_and_not_executed() {
        // class X: __reduce__ = lambda self: (os.system, ("echo",)), protocol 2
        let Value::Call(call) =
            value(b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00echoq\x01\x85q\x02Rq\x03.")
        else {
            panic!("no call")
        };
        assert_eq!(&*call.of, "posix system");
        assert_eq!(call.args.elements()[0].as_str(), Some("echo"));
    }

    #[test]
    fn damage_and_unknown_opcodes_are_errors_with_their_place() {
        let error = |bytes: &[u8]| format!("{:#}", read(bytes).unwrap_err());
        assert!(error(b"\x80\x02}").contains("cut short"));
        assert!(error(b"\x80\x02P1\n.").contains("opcode 0x50 at byte 2: it is not one"));
        assert!(error(b"\x80\x02t.").contains("misses a mark"));
        assert!(error(b"\x80\x02h\x07.").contains("no such entry"));
        assert!(error(b"\x80\x02X\xff\xff\xff\xff").contains("cut short"));
        assert!(error(b".").contains("empty stack"));
    }

    #[test]
    fn too_deeply_nested_pickle_is_an_error() {
        let deep = |levels: usize| [b"\x80\x02N".to_vec(), vec![0x85; levels], b".".to_vec()].concat();
        assert!(read(&deep(MAX_CONTAINERS - 1)).is_ok());
        assert!(read(&deep(1 << 20)).unwrap_err().to_string().contains("more values than any model"));
        let marks = [b"\x80\x02".to_vec(), vec![b'('; MAX_VALUES], b".".to_vec()].concat();
        assert!(read(&marks).unwrap_err().to_string().contains("more values than any model"));
    }
}
