//! [`Schema`]: the messages and calls of etcd's API, made from the protobuf descriptors for quick access by `decode`
//! and `encode`.
//!
//! Created once at the start. JSON is in `decode` and `encode`, HTTP paths are in `routes`. Always holds: the fields of
//! a message are in the order of their numbers, which in etcd's files is the order of declaration. Messages and
//! enumerations are identified by valid indices.

use std::collections::HashMap;

use prost_reflect::{self as reflect, DescriptorPool, FieldDescriptor};
use thiserror::Error;

/// See the module.
#[derive(Debug)]
pub(in crate::front) struct Schema {
    messages: Vec<Message>,
    enums: Vec<Enum>,
    calls: HashMap<&'static str, Call>,
}

/// A message type.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) fields: Vec<Field>,
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    /// The name in the file, used in answers and accepted in requests.
    pub(super) name: String,
    /// The name in lowerCamelCase, also accepted in requests.
    pub(super) json_name: String,
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
    /// The oneof of the field. A message has at most one field of a oneof.
    pub(super) oneof: Option<usize>,
}

/// The type of a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Text,
    Bytes,
    Enum(EnumId),
    Message(MessageId),
}

/// The index of a message in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::front) struct MessageId(usize);

/// The index of an enumeration in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EnumId(usize);

/// An enumeration.
#[derive(Debug)]
pub(super) struct Enum {
    pub(super) name: String,
    values: Vec<(String, i32)>,
}

/// A call of etcd's API.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// The gRPC name, such as `/etcdserverpb.KV/Range`.
    pub(super) path: &'static str,
    pub(super) request: MessageId,
    pub(super) response: MessageId,
    /// Whether the client may send any number of requests.
    pub(super) requests: bool,
    /// Whether the server may send any number of responses.
    pub(super) responses: bool,
}

/// Why the descriptors cannot be used, which is a fault of the build.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// They cannot be read.
    #[error("the protocol's descriptors cannot be read")]
    Descriptors(#[from] reflect::DescriptorError),
    /// A call is missing in them.
    #[error("the protocol's descriptors have no call {0}")]
    NoCall(&'static str),
    /// A field has a type that no message of etcd has used so far.
    #[error("the JSON gateway cannot translate the field {0}")]
    Unsupported(String),
}

impl Schema {
    /// Creates the schema of these calls, with all messages that they use.
    ///
    /// # Errors
    /// Fails if a call is missing or uses an unsupported type.
    pub(super) fn new(descriptors: &[u8], paths: impl IntoIterator<Item = &'static str>) -> Result<Self, SchemaError> {
        let pool = DescriptorPool::decode(descriptors)?;
        let mut schema = Self { messages: Vec::new(), enums: Vec::new(), calls: HashMap::new() };
        let mut known = Known::default();
        for path in paths {
            let method = path.strip_prefix('/').and_then(|path| path.split_once('/')).and_then(|(service, name)| {
                let service = pool.get_service_by_name(service)?;
                service.methods().find(|method| method.name() == name)
            });
            let method = method.ok_or(SchemaError::NoCall(path))?;
            let call = Call {
                path,
                request: known.message(&method.input()),
                response: known.message(&method.output()),
                requests: method.is_client_streaming(),
                responses: method.is_server_streaming(),
            };
            schema.calls.insert(path, call);
        }
        // Fields refer to further messages, which are read in turn.
        while let Some(message) = known.messages.get(schema.messages.len()).cloned() {
            let fields = message.fields().map(|field| known.field(&field)).collect::<Result<_, _>>()?;
            schema.messages.push(Message { fields });
        }
        schema.enums = known.enums.iter().map(Enum::of).collect();
        Ok(schema)
    }

    pub(super) fn call(&self, path: &str) -> Option<Call> {
        self.calls.get(path).copied()
    }

    pub(super) fn message(&self, id: MessageId) -> &Message {
        &self.messages[id.0]
    }

    pub(super) fn enumeration(&self, id: EnumId) -> &Enum {
        &self.enums[id.0]
    }
}

impl Message {
    /// The field with this number.
    pub(super) fn field(&self, number: u32) -> Option<&Field> {
        let index = self.fields.binary_search_by_key(&number, |field| field.number).ok()?;
        self.fields.get(index)
    }
}

impl Enum {
    fn of(descriptor: &reflect::EnumDescriptor) -> Self {
        let values = descriptor.values().map(|value| (value.name().to_owned(), value.number())).collect();
        Self { name: descriptor.full_name().to_owned(), values }
    }

    pub(super) fn number(&self, name: &[u8]) -> Option<i32> {
        self.values.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, number)| *number)
    }

    pub(super) fn name_of(&self, number: i32) -> Option<&str> {
        self.values.iter().find(|(_, known)| *known == number).map(|(name, _)| name.as_str())
    }
}

/// The items that already have an index.
#[derive(Default)]
struct Known {
    messages: Vec<reflect::MessageDescriptor>,
    enums: Vec<reflect::EnumDescriptor>,
}

impl Known {
    fn message(&mut self, wanted: &reflect::MessageDescriptor) -> MessageId {
        MessageId(place(&mut self.messages, wanted))
    }

    fn field(&mut self, field: &FieldDescriptor) -> Result<Field, SchemaError> {
        let kind = match field.kind() {
            _ if field.is_map() || field.is_group() => None,
            reflect::Kind::Bool => Some(Kind::Bool),
            reflect::Kind::Int32 => Some(Kind::Int32),
            reflect::Kind::Int64 => Some(Kind::Int64),
            reflect::Kind::Uint32 => Some(Kind::Uint32),
            reflect::Kind::Uint64 => Some(Kind::Uint64),
            reflect::Kind::String => Some(Kind::Text),
            reflect::Kind::Bytes => Some(Kind::Bytes),
            reflect::Kind::Enum(wanted) => Some(Kind::Enum(EnumId(place(&mut self.enums, &wanted)))),
            reflect::Kind::Message(wanted) => Some(Kind::Message(self.message(&wanted))),
            _ => None,
        };
        let kind = kind.ok_or_else(|| SchemaError::Unsupported(field.full_name().to_owned()))?;
        let oneofs = field.parent_message().oneofs();
        let oneof = field.containing_oneof().and_then(|wanted| oneofs.enumerate().find(|(_, known)| *known == wanted));
        Ok(Field {
            name: field.name().to_owned(),
            json_name: field.json_name().to_owned(),
            number: field.number(),
            kind,
            repeated: field.is_list(),
            oneof: oneof.map(|(index, _)| index),
        })
    }
}

/// The index of an item in a list. It is appended if it is missing.
fn place<T: PartialEq + Clone>(list: &mut Vec<T>, wanted: &T) -> usize {
    list.iter().position(|known| known == wanted).unwrap_or_else(|| {
        list.push(wanted.clone());
        list.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::{super::routes, *};

    #[test]
    fn each_route_has_a_call_and_fields_are_declared_in_the_order_of_their_numbers() {
        let schema = Schema::new(crate::pb::FILE_DESCRIPTOR_SET, routes::calls()).expect("a schema");
        let watch = schema.call("/etcdserverpb.Watch/Watch").expect("a call");
        assert!(watch.requests && watch.responses);
        // The encoder writes fields in the order of arrival, and etcd sends them in the order of declaration.
        let pool = DescriptorPool::decode(crate::pb::FILE_DESCRIPTOR_SET).expect("descriptors");
        for message in pool.all_messages().filter(|message| message.package_name() != "message") {
            let numbers: Vec<_> = message.descriptor_proto().field.iter().map(|field| field.number()).collect();
            assert!(numbers.is_sorted(), "{}", message.full_name());
        }
    }
}
