//! The part of ONNX's messages that networks here need, and how a large one streams to a file.
//!
//! Field numbers are those of onnx.proto3 (github.com/onnx/onnx). What a reader meets beside them it passes over, as protocol
//! buffers ask. Optional fields are those whose absence ONNX's own checker tells from a zero.

use std::io::{self, Write};

use prost::Message;
use prost::bytes::Bytes;

/// A whole file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Field number of [`ModelProto::graph`].
const GRAPH: u8 = 7;

/// Which version of the operators' meanings holds; the empty domain is ONNX's own.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OperatorSetIdProto {
    /// Written even when empty: a reader may insist on it.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A key and its value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes in an order in which they can run, and their constants.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// Of values between, where a reader could not find out.
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
}

/// Field number of [`GraphProto::initializer`].
const INITIALIZER: u8 = 5;

/// One operation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// A setting of an operation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// One of [`attribute_type`].
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// What an attribute holds.
pub(super) mod attribute_type {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const INTS: i32 = 7;
}

/// A constant tensor.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// One of [`data_type`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    /// The elements, little-endian, the last dimension the fastest. `Bytes`, so that reading copies nothing.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<Bytes>,
}

/// Field number of [`TensorProto::raw_data`].
const RAW_DATA: u8 = 9;

/// Types of elements.
pub(super) mod data_type {
    pub const FLOAT: i32 = 1;
    pub const INT64: i32 = 7;
}

/// Name, type and meaning of an input or output.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    #[prost(string, tag = "3")]
    pub doc_string: String,
}

/// What a value is; here always a tensor.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorTypeProto {
    /// One of [`data_type`].
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// The dimensions.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// `TensorShapeProto.Dimension`: a number, or a name for one that is known only when the model runs.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

/// Length of a field whose contents have `length` bytes: the number (below 16, so one byte), the length, the contents.
fn framed(length: usize) -> usize {
    1 + prost::length_delimiter_len(length) + length
}

/// Begins such a field; its contents follow.
fn frame(field: u8, length: usize, out: &mut Vec<u8>) -> io::Result<()> {
    // The low three bits say "length, then contents".
    out.push(field << 3 | 2);
    prost::encode_length_delimiter(length, out).map_err(io::Error::other)
}

/// A model whose constants are not in memory all at once: the messages would hold a second copy of them, and their encoding
/// a third.
pub(super) struct ModelStream<'a> {
    /// Everything around the graph, which is not in it.
    pub model: &'a ModelProto,
    /// The graph without constants.
    pub graph: &'a GraphProto,
    /// The constants without their bytes, and how many bytes each has.
    pub constants: &'a [(TensorProto, usize)],
}

impl ModelStream<'_> {
    fn constant_len((header, bytes): &(TensorProto, usize)) -> usize {
        header.encoded_len() + framed(*bytes)
    }

    fn graph_len(&self) -> usize {
        let constants: usize = self.constants.iter().map(|c| framed(Self::constant_len(c))).sum();
        self.graph.encoded_len() + constants
    }

    /// Length of the file.
    pub fn len(&self) -> usize {
        self.model.encoded_len() + framed(self.graph_len())
    }

    /// Writes the file; `bytes` gives those of the constant of each index, when its turn has come.
    pub fn write<E: From<io::Error>>(
        &self,
        out: &mut impl Write,
        mut bytes: impl FnMut(usize) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let mut head = self.model.encode_to_vec();
        frame(GRAPH, self.graph_len(), &mut head)?;
        head.extend(self.graph.encode_to_vec());
        for (i, constant) in self.constants.iter().enumerate() {
            frame(INITIALIZER, Self::constant_len(constant), &mut head)?;
            head.extend(constant.0.encode_to_vec());
            frame(RAW_DATA, constant.1, &mut head)?;
            out.write_all(&head)?;
            head.clear();
            out.write_all(&bytes(i)?)?;
        }
        Ok(out.write_all(&head)?)
    }
}
