//! Types of the fields of Parquet's headers, as parquet.thrift of the format has them.

/// Thrift's numbers of types.
pub(super) mod kind {
    pub const STOP: u8 = 0;
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const BYTE: u8 = 3;
    pub const I16: u8 = 4;
    pub const I32: u8 = 5;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const SET: u8 = 10;
    pub const STRUCT: u8 = 12;
}

/// Type of a value.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Bool,
    Byte,
    /// A number of 16, 32 or 64 bits: they are written alike
    Int,
    Double,
    Binary,
    List(&'static Type),
    Struct(Fields),
}

/// Fields of a struct by their numbers; a union is a struct of one of them.
pub(super) type Fields = &'static [(i16, Type)];

impl Type {
    /// True if values that say that they are of this type of Thrift are written like this one.
    pub(super) fn is(self, found: u8) -> bool {
        match self {
            Self::Bool => matches!(found, kind::TRUE | kind::FALSE),
            Self::Byte => found == kind::BYTE,
            Self::Int => matches!(found, kind::I16 | kind::I32 | kind::I64),
            Self::Double => found == kind::DOUBLE,
            Self::Binary => found == kind::BINARY,
            Self::List(_) => matches!(found, kind::LIST | kind::SET),
            Self::Struct(_) => found == kind::STRUCT,
        }
    }

    /// Type of the elements of a list.
    pub(super) fn element(self) -> Option<Self> {
        if let Self::List(element) = self { Some(*element) } else { None }
    }

    pub(super) fn fields(self) -> Fields {
        if let Self::Struct(fields) = self { fields } else { &[] }
    }
}

use Type::{Binary, Bool, Byte, Double, Int, List, Struct};

const EMPTY: Type = Struct(&[]);
const INTS: Type = List(&Int);
const KEY_VALUE: Type = Struct(&[(1, Binary), (2, Binary)]);
const STATISTICS: Type =
    Struct(&[(1, Binary), (2, Binary), (3, Int), (4, Int), (5, Binary), (6, Binary), (7, Bool), (8, Bool), (9, Int)]);

const TIME: Type = Struct(&[(1, Bool), (2, Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))]);
const LOGICAL_TYPE: Type = Struct(&[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Struct(&[(1, Int), (2, Int)])),
    (6, EMPTY),
    (7, TIME),
    (8, TIME),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Binary)])),
    (18, Struct(&[(1, Binary), (2, Int)])),
]);
const SCHEMA_ELEMENT: Type = Struct(&[
    (1, Int),
    (2, Int),
    (3, Int),
    (4, Binary),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, Int),
    (9, Int),
    (10, LOGICAL_TYPE),
]);

const BOUNDING_BOX: Type =
    Struct(&[(1, Double), (2, Double), (3, Double), (4, Double), (5, Double), (6, Double), (7, Double), (8, Double)]);
const COLUMN: Type = Struct(&[
    (1, Int),
    (2, INTS),
    (3, List(&Binary)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, List(&KEY_VALUE)),
    (9, Int),
    (10, Int),
    (11, Int),
    (12, STATISTICS),
    (13, List(&Struct(&[(1, Int), (2, Int), (3, Int)]))),
    (14, Int),
    (15, Int),
    (16, Struct(&[(1, Int), (2, INTS), (3, INTS)])),
    (17, Struct(&[(1, BOUNDING_BOX), (2, INTS)])),
]);
const COLUMN_CHUNK: Type = Struct(&[
    (1, Binary),
    (2, Int),
    (3, COLUMN),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, Struct(&[(1, EMPTY), (2, Struct(&[(1, List(&Binary)), (2, Binary)]))])),
    (9, Binary),
]);
const ROW_GROUP: Type = Struct(&[
    (1, List(&COLUMN_CHUNK)),
    (2, Int),
    (3, Int),
    (4, List(&Struct(&[(1, Int), (2, Bool), (3, Bool)]))),
    (5, Int),
    (6, Int),
    (7, Int),
]);
const ENCRYPTION: Type = Struct(&[(1, Binary), (2, Binary), (3, Bool)]);

/// FileMetaData
pub(super) const FOOTER: Fields = &[
    (1, Int),
    (2, List(&SCHEMA_ELEMENT)),
    (3, Int),
    (4, List(&ROW_GROUP)),
    (5, List(&KEY_VALUE)),
    (6, Binary),
    (7, List(&Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))),
    (8, Struct(&[(1, ENCRYPTION), (2, ENCRYPTION)])),
    (9, Binary),
];

/// PageHeader
pub(super) const PAGE: Fields = &[
    (1, Int),
    (2, Int),
    (3, Int),
    (4, Int),
    (5, Struct(&[(1, Int), (2, Int), (3, Int), (4, Int), (5, STATISTICS)])),
    (6, EMPTY),
    (7, Struct(&[(1, Int), (2, Int), (3, Bool)])),
    (8, Struct(&[(1, Int), (2, Int), (3, Int), (4, Int), (5, Int), (6, Int), (7, Bool), (8, STATISTICS)])),
];
