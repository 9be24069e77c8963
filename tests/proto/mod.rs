//! Protobuf as another language would make and read it, by descriptions that are compiled here: batches of `clients/proto/timings.proto`, families of metrics.

use std::sync::OnceLock;

use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

fn compiled(folder: &str, file: &str, message: &str) -> MessageDescriptor {
    let files = protox::compile([file], [format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"))]).unwrap_or_else(|e| panic!("{e:?}"));
    DescriptorPool::from_file_descriptor_set(files).unwrap().get_message_by_name(message).unwrap()
}

fn batch() -> &'static MessageDescriptor {
    static BATCH: OnceLock<MessageDescriptor> = OnceLock::new();
    BATCH.get_or_init(|| compiled("clients/proto", "timings.proto", "slowburn.v1.Batch"))
}

/// The bytes of a `Batch`.
pub fn encode(message: &Value) -> Vec<u8> {
    DynamicMessage::deserialize(batch().clone(), message).unwrap_or_else(|e| panic!("{e}: {message}")).encode_to_vec()
}

/// The families of a page, each behind its length, in protobuf's own JSON form.
#[allow(dead_code, reason = "one of the tests that read this file needs it")]
pub fn decode_families(mut page: &[u8]) -> Vec<Value> {
    let family = compiled("tests/proto", "metrics.proto", "io.prometheus.client.MetricFamily");
    let mut families = Vec::new();
    while !page.is_empty() {
        let mut message = DynamicMessage::new(family.clone());
        message.merge_length_delimited(&mut page).unwrap();
        assert_eq!(message.unknown_fields().count(), 0, "{message}");
        families.push(serde_json::to_value(&message).unwrap());
    }
    families
}
