//! This file is where a graph's text form is: one line a node, written for people, read for tests.
//!
//! ```text
//! y, z = Split(x[2, n, 6], [2, 4]) {axis: -1}; p = com.microsoft::FusedMatMul(y, w, _) {alpha: 0.5}
//! ```
//!
//! When read, names that no node makes become inputs (float32 unless `x: int64[2]` says otherwise),
//! numbers become constants (int64, or float32 with a point; lists are one-dimensional), `_` is an
//! operand left out, and what no node reads is an output. `x > 0` restricts an input to positive values,
//! for operators whose domain ends at zero.

use std::fmt;

use super::{Attribute, Axis, Element, Graph, Names, Node, Port, Tensor, Type, Value};

/// A graph that was written down to show something.
#[derive(Debug, Clone)]
pub struct Example {
    /// The graph.
    pub graph: Graph,
    /// Inputs that must be positive.
    pub positive: Vec<Value>,
}

/// Why a text is not a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} before {rest:?}")]
pub struct TextError {
    expected: &'static str,
    rest: String,
}

impl Graph {
    /// Reads the text form; see the module.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        Example::parse(text).map(|it| it.graph)
    }
}

impl Example {
    /// Reads the text form; see the module. The opset is 17.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let graph = Graph { name: "example".into(), ir_version: 8, ..Graph::default() };
        let mut reader =
            Reader { rest: text, it: Self { graph, positive: Vec::new() }, names: Names::default() };
        reader.it.graph.opsets.insert(String::new(), 17);
        reader.skip();
        while !reader.rest.is_empty() {
            reader.node()?;
        }
        let Self { mut graph, positive } = reader.it;
        let made: Vec<Value> = graph.nodes.iter().flat_map(|it| it.outputs.clone()).collect();
        graph.inputs.retain(|port| !made.contains(&port.value));
        let reads: Vec<Value> = graph.nodes.iter().flat_map(Node::reads).collect();
        let ends = made.into_iter().filter(|it| !it.is_absent() && !reads.contains(it));
        graph.outputs = ends.map(|value| Port { value, ty: Type::Tensor(Element::F32, None) }).collect();
        Ok(Self { graph, positive })
    }
}

struct Reader<'a> {
    rest: &'a str,
    it: Example,
    names: Names,
}

impl<'a> Reader<'a> {
    fn node(&mut self) -> Result<(), TextError> {
        let mut node = Node::default();
        loop {
            node.outputs.push(self.name()?);
            if !self.eat(",") {
                break;
            }
        }
        self.need("=", "'='")?;
        node.op = self.word("an operator")?.to_owned();
        if self.eat("::") {
            node.domain = std::mem::replace(&mut node.op, self.word("an operator")?.to_owned());
            self.it.graph.opsets.insert(node.domain.clone(), 1);
        }
        self.need("(", "'('")?;
        while !self.eat(")") {
            let operand = self.operand()?;
            node.inputs.push(operand);
            self.eat(",");
        }
        if self.eat("{") {
            while !self.eat("}") {
                let name = self.word("an attribute")?.to_owned();
                self.need(":", "':'")?;
                let value = self.attribute()?;
                node.attributes.insert(name, value);
                self.eat(",");
            }
        }
        self.eat(";");
        self.it.graph.nodes.push(node);
        Ok(())
    }

    fn operand(&mut self) -> Result<Value, TextError> {
        if let Some(tensor) = self.literal()? {
            let value = self.names.fresh("constant");
            self.it.graph.initializers.insert(value.clone(), tensor);
            return Ok(value);
        }
        let value = self.name()?;
        let element = if self.eat(":") {
            let name = self.word("an element type")?;
            Element::from_name(name).ok_or_else(|| self.expected("an element type"))?
        } else {
            Element::F32
        };
        let dims = if self.eat("[") { Some(self.dims()?) } else { None };
        if self.eat("> 0") || self.eat(">0") {
            self.it.positive.push(value.clone());
        }
        let graph = &mut self.it.graph;
        if !value.is_absent() && graph.input(&value).is_none() {
            graph.inputs.push(Port { value: value.clone(), ty: Type::Tensor(element, dims) });
        }
        Ok(value)
    }

    fn dims(&mut self) -> Result<Vec<Axis>, TextError> {
        let mut dims = Vec::new();
        while !self.eat("]") {
            let word = self.word("a dimension")?;
            dims.push(word.parse().map_or_else(|_| Axis::Named(word.to_owned()), Axis::Fixed));
            self.eat(",");
        }
        Ok(dims)
    }

    fn attribute(&mut self) -> Result<Attribute, TextError> {
        if self.eat("\"") {
            let (text, rest) = self.rest.split_once('"').ok_or_else(|| self.expected("'\"'"))?;
            self.rest = rest;
            self.skip();
            return Ok(text.into());
        }
        let tensor = self.literal()?.ok_or_else(|| self.expected("a constant"))?;
        let scalar = tensor.dims().is_empty();
        Ok(match (tensor.to_i64(), tensor.to_f32()) {
            (Some(ints), _) if scalar => Attribute::Int(ints[0]),
            (Some(ints), _) => Attribute::Ints(ints),
            (_, Some(floats)) if scalar => Attribute::Float(floats[0]),
            (_, floats) => Attribute::Floats(floats.unwrap_or_default()),
        })
    }

    /// A number or a list of numbers, if one comes next.
    fn literal(&mut self) -> Result<Option<Tensor>, TextError> {
        let mut words = Vec::new();
        let list = self.eat("[");
        while !(list && self.eat("]")) {
            let numeric = |it: char| it.is_ascii_digit() || matches!(it, '-' | '+' | '.' | 'e');
            let end = self.rest.find(|it| !numeric(it)).unwrap_or(self.rest.len());
            let starts = self.rest.starts_with(|it: char| it.is_ascii_digit() || it == '-');
            if !starts || end == 0 {
                return if list { Err(self.expected("a number")) } else { Ok(None) };
            }
            words.push(&self.rest[..end]);
            self.rest = &self.rest[end..];
            self.skip();
            if !list {
                break;
            }
            self.eat(",");
        }
        let dims: &[usize] = if list { &[words.len()] } else { &[] };
        if words.iter().any(|it| it.contains('.')) {
            let floats: Result<Vec<f32>, _> = words.iter().map(|it| it.parse()).collect();
            let floats = floats.map_err(|_| self.expected("numbers"))?;
            return Ok(Some(Tensor::from_f32(dims, &floats)));
        }
        let ints: Result<Vec<i64>, _> = words.iter().map(|it| it.parse()).collect();
        Ok(Some(Tensor::from_i64(dims, &ints.map_err(|_| self.expected("numbers"))?)))
    }

    fn name(&mut self) -> Result<Value, TextError> {
        let word = self.word("a name")?;
        Ok(if word == "_" { Value::absent() } else { word.into() })
    }

    fn word(&mut self, expected: &'static str) -> Result<&'a str, TextError> {
        let part = |it: char| it.is_alphanumeric() || matches!(it, '_' | '.' | '/' | '\'' | '-');
        let end = self.rest.find(|it| !part(it)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.expected(expected));
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.skip();
        Ok(word)
    }

    fn need(&mut self, token: &str, expected: &'static str) -> Result<(), TextError> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn eat(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest;
        self.skip();
        true
    }

    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn expected(&self, expected: &'static str) -> TextError {
        TextError { expected, rest: self.rest.chars().take(40).collect() }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for port in &self.inputs {
            writeln!(f, "in  {port}")?;
        }
        for node in &self.nodes {
            writeln!(f, "{}", Shown { graph: self, node })?;
        }
        for port in &self.outputs {
            writeln!(f, "out {port}")?;
        }
        Ok(())
    }
}

/// A node in its graph, so that small constants show their values.
struct Shown<'a> {
    graph: &'a Graph,
    node: &'a Node,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |it: &Value| if it.is_absent() { "_".to_owned() } else { it.to_string() };
        let operand = |it: &Value| match self.graph.initializers.get(it) {
            Some(tensor) if tensor.len() <= 8 && tensor.dims().len() <= 1 => numbers(tensor),
            _ => name(it),
        };
        let outputs: Vec<String> = self.node.outputs.iter().map(name).collect();
        let inputs: Vec<String> = self.node.inputs.iter().map(operand).collect();
        write!(f, "{} = {}({})", outputs.join(", "), self.node.operator(), inputs.join(", "))?;
        if self.node.attributes.is_empty() {
            return Ok(());
        }
        let pairs: Vec<String> = self.node.attributes.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        write!(f, " {{{}}}", pairs.join(", "))
    }
}

fn numbers(tensor: &Tensor) -> String {
    let scalar = tensor.dims().is_empty();
    match (tensor.to_i64(), tensor.to_f32()) {
        (Some(ints), _) if scalar => format!("{}", ints[0]),
        (Some(ints), _) => format!("{ints:?}"),
        (_, Some(floats)) if scalar => format!("{:?}", floats[0]),
        (_, Some(floats)) => format!("{floats:?}"),
        _ => tensor.to_string(),
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(it) => write!(f, "{it}"),
            Self::Float(it) => write!(f, "{it:?}"),
            Self::Text(it) => write!(f, "{:?}", String::from_utf8_lossy(it)),
            Self::Tensor(it) => write!(f, "{it}"),
            Self::Graph(it) => write!(f, "graph of {} nodes", it.nodes.len()),
            Self::Ints(it) => write!(f, "{it:?}"),
            Self::Floats(it) => write!(f, "{it:?}"),
            Self::Texts(it) => write!(f, "{} texts", it.len()),
            Self::Other(_) => write!(f, "?"),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ty {
            Type::Tensor(element, None) => write!(f, "{}: {element}", self.value),
            Type::Tensor(element, Some(dims)) => {
                let dims: Vec<String> = dims.iter().map(Axis::to_string).collect();
                write!(f, "{}: {element}[{}]", self.value, dims.join(", "))
            }
            Type::Other(_) => write!(f, "{}: not a tensor", self.value),
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(it) => write!(f, "{it}"),
            Self::Named(it) => f.write_str(it),
            Self::Unknown => f.write_str("?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn what_is_read_is_written_again() {
        let text = "a, b = Split(x[2, n, 6], [2, 4]) {axis: -1, mode: \"m\"}; \
                    y = com.microsoft::FusedMatMul(a, w: float64, _) {alpha: 0.5}";
        assert_snapshot!(Graph::parse(text).unwrap(), @r#"
        in  x: float32[2, n, 6]
        in  w: float64
        a, b = Split(x, [2, 4]) {axis: -1, mode: "m"}
        y = com.microsoft::FusedMatMul(a, w, _) {alpha: 0.5}
        out b: float32
        out y: float32
        "#);
    }

    #[test]
    fn a_misspelt_line_is_pointed_at() {
        let error = Graph::parse("y = Exp(x) {axis -1}").unwrap_err();
        assert_eq!(error.to_string(), r#"expected ':' before "-1}""#);
    }

    #[test]
    fn a_positive_domain_is_kept() {
        let example = Example::parse("y = Log(x[2] > 0)").unwrap();
        assert_eq!(example.positive, ["x".into()]);
    }
}
