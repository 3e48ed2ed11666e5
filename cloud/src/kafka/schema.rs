//! The shape of every request we serve, per version: enough to walk its bytes, nothing of its meaning.
//!
//! In: an API key. Out: the fields in wire order and the versions that carry them (Kafka's message JSON files).
//! Change here: a version is added to [`TABLE`]. Not here: walking (`guard`), meaning (`api`).

/// A field, or the element of an array.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) kind: Kind,
    pub(super) from: i16,
    pub(super) to: i16,
}

/// How a field looks in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// That many bytes.
    Fixed(usize),
    /// Length i16, or varint + 1 in flexible versions; null allowed.
    String,
    /// Length i32, or varint + 1 in flexible versions; null allowed.
    Bytes,
    /// Count as for `Bytes`, then elements of one primitive.
    List(&'static Field),
    /// Count as for `Bytes`, then structs, each with tagged fields in flexible versions.
    Rows(&'static [Field]),
}

/// One API: what we serve, and the request's shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Api {
    pub(super) key: i16,
    /// First version advertised.
    pub(super) min: i16,
    /// Last version advertised.
    pub(super) max: i16,
    /// First version with compact lengths and tagged fields.
    pub(super) flexible: i16,
    pub(super) fields: &'static [Field],
}

impl Api {
    pub(super) fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible
    }

    pub(super) fn serves(&self, version: i16) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

/// The API of that key, if we serve it.
pub(super) fn api(key: i16) -> Option<&'static Api> {
    TABLE.iter().find(|api| api.key == key)
}

pub(super) const PRODUCE: i16 = 0;
pub(super) const FETCH: i16 = 1;
pub(super) const LIST_OFFSETS: i16 = 2;
pub(super) const METADATA: i16 = 3;
pub(super) const OFFSET_COMMIT: i16 = 8;
pub(super) const OFFSET_FETCH: i16 = 9;
pub(super) const FIND_COORDINATOR: i16 = 10;
pub(super) const JOIN_GROUP: i16 = 11;
pub(super) const HEARTBEAT: i16 = 12;
pub(super) const LEAVE_GROUP: i16 = 13;
pub(super) const SYNC_GROUP: i16 = 14;
pub(super) const DESCRIBE_GROUPS: i16 = 15;
pub(super) const LIST_GROUPS: i16 = 16;
pub(super) const API_VERSIONS: i16 = 18;
pub(super) const CREATE_TOPICS: i16 = 19;
pub(super) const DELETE_TOPICS: i16 = 20;
pub(super) const DELETE_RECORDS: i16 = 21;
pub(super) const INIT_PRODUCER_ID: i16 = 22;
pub(super) const OFFSET_FOR_LEADER_EPOCH: i16 = 23;
pub(super) const DESCRIBE_CONFIGS: i16 = 32;
pub(super) const ALTER_CONFIGS: i16 = 33;
pub(super) const CREATE_PARTITIONS: i16 = 37;
pub(super) const DELETE_GROUPS: i16 = 42;
pub(super) const INCREMENTAL_ALTER_CONFIGS: i16 = 44;
pub(super) const OFFSET_DELETE: i16 = 47;
pub(super) const DESCRIBE_CLUSTER: i16 = 60;

const NEVER: i16 = i16::MAX;

const fn all(kind: Kind) -> Field {
    Field { kind, from: 0, to: i16::MAX }
}

impl Field {
    const fn since(self, from: i16) -> Self {
        Self { from, ..self }
    }

    const fn until(self, to: i16) -> Self {
        Self { to, ..self }
    }
}

const fn rows(fields: &'static [Field]) -> Field {
    all(Kind::Rows(fields))
}

const fn list(element: &'static Field) -> Field {
    all(Kind::List(element))
}

const BOOL: Field = all(Kind::Fixed(1));
const I8: Field = all(Kind::Fixed(1));
const I16: Field = all(Kind::Fixed(2));
const I32: Field = all(Kind::Fixed(4));
const I64: Field = all(Kind::Fixed(8));
const UUID: Field = all(Kind::Fixed(16));
const STRING: Field = all(Kind::String);
const BYTES: Field = all(Kind::Bytes);

const fn serve(key: i16, min: i16, max: i16, flexible: i16, fields: &'static [Field]) -> Api {
    Api { key, min, max, flexible, fields }
}

/// What ApiVersions advertises, ascending by key.
pub(super) const TABLE: &[Api] = &[
    // Versions 0 to 2 are listed and answered with UNSUPPORTED_VERSION: old librdkafka switches compression off when
    // version 0 is not listed (KAFKA-18659).
    serve(PRODUCE, 0, 11, 9, &[STRING.since(3), I16, I32, rows(&[STRING, rows(&[I32, BYTES])])]),
    serve(
        FETCH,
        4,
        16,
        12,
        &[
            I32.until(14),
            I32,
            I32,
            I32,
            I8,
            I32.since(7),
            I32.since(7),
            rows(&[
                STRING.until(12),
                UUID.since(13),
                rows(&[I32, I32.since(9), I64, I32.since(12), I64.since(5), I32]),
            ]),
            rows(&[STRING.until(12), UUID.since(13), list(&I32)]).since(7),
            STRING.since(11),
        ],
    ),
    serve(
        LIST_OFFSETS,
        1,
        8,
        6,
        &[I32, I8.since(2), rows(&[STRING, rows(&[I32, I32.since(4), I64])])],
    ),
    serve(
        METADATA,
        0,
        13,
        9,
        &[rows(&[UUID.since(10), STRING]), BOOL.since(4), BOOL.since(8).until(10), BOOL.since(8)],
    ),
    serve(
        OFFSET_COMMIT,
        2,
        9,
        8,
        &[
            STRING,
            I32,
            STRING,
            STRING.since(7),
            I64.until(4),
            rows(&[STRING, rows(&[I32, I64, I32.since(6), STRING])]),
        ],
    ),
    serve(
        OFFSET_FETCH,
        1,
        9,
        6,
        &[
            STRING.until(7),
            rows(&[STRING, list(&I32)]).until(7),
            rows(&[STRING, STRING.since(9), I32.since(9), rows(&[STRING, list(&I32)])]).since(8),
            BOOL.since(7),
        ],
    ),
    serve(FIND_COORDINATOR, 0, 5, 3, &[STRING.until(3), I8.since(1), list(&STRING).since(4)]),
    serve(
        JOIN_GROUP,
        0,
        9,
        6,
        &[
            STRING,
            I32,
            I32.since(1),
            STRING,
            STRING.since(5),
            STRING,
            rows(&[STRING, BYTES]),
            STRING.since(8),
        ],
    ),
    serve(HEARTBEAT, 0, 4, 4, &[STRING, I32, STRING, STRING.since(3)]),
    serve(
        LEAVE_GROUP,
        0,
        5,
        4,
        &[STRING, STRING.until(2), rows(&[STRING, STRING, STRING.since(5)]).since(3)],
    ),
    serve(
        SYNC_GROUP,
        0,
        5,
        4,
        &[
            STRING,
            I32,
            STRING,
            STRING.since(3),
            STRING.since(5),
            STRING.since(5),
            rows(&[STRING, BYTES]),
        ],
    ),
    serve(DESCRIBE_GROUPS, 0, 6, 5, &[list(&STRING), BOOL.since(3)]),
    serve(LIST_GROUPS, 0, 5, 3, &[list(&STRING).since(4), list(&STRING).since(5)]),
    serve(API_VERSIONS, 0, 4, 3, &[STRING.since(3), STRING.since(3)]),
    serve(
        CREATE_TOPICS,
        2,
        7,
        5,
        &[rows(&[STRING, I32, I16, rows(&[I32, list(&I32)]), rows(&[STRING, STRING])]), I32, BOOL],
    ),
    serve(DELETE_TOPICS, 1, 6, 4, &[rows(&[STRING, UUID]).since(6), list(&STRING).until(5), I32]),
    serve(DELETE_RECORDS, 0, 2, 2, &[rows(&[STRING, rows(&[I32, I64])]), I32]),
    serve(INIT_PRODUCER_ID, 0, 5, 2, &[STRING, I32, I64.since(3), I16.since(3)]),
    serve(
        OFFSET_FOR_LEADER_EPOCH,
        2,
        4,
        4,
        &[I32.since(3), rows(&[STRING, rows(&[I32, I32, I32])])],
    ),
    serve(DESCRIBE_CONFIGS, 1, 4, 4, &[rows(&[I8, STRING, list(&STRING)]), BOOL, BOOL.since(3)]),
    serve(ALTER_CONFIGS, 0, 2, 2, &[rows(&[I8, STRING, rows(&[STRING, STRING])]), BOOL]),
    serve(CREATE_PARTITIONS, 0, 3, 2, &[rows(&[STRING, I32, rows(&[list(&I32)])]), I32, BOOL]),
    serve(DELETE_GROUPS, 0, 2, 2, &[list(&STRING)]),
    serve(
        INCREMENTAL_ALTER_CONFIGS,
        0,
        1,
        1,
        &[rows(&[I8, STRING, rows(&[STRING, I8, STRING])]), BOOL],
    ),
    serve(OFFSET_DELETE, 0, 0, NEVER, &[STRING, rows(&[STRING, rows(&[I32])])]),
    serve(DESCRIBE_CLUSTER, 0, 2, 0, &[BOOL, I8.since(1), BOOL.since(2)]),
];
