//! Binary batches as another language would make them: by `clients/proto/timings.proto`, which is compiled here, out of protobuf's own JSON form.

use std::sync::OnceLock;

use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

fn batch() -> &'static MessageDescriptor {
    static BATCH: OnceLock<MessageDescriptor> = OnceLock::new();
    BATCH.get_or_init(|| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/proto");
        let files = protox::compile(["timings.proto"], [folder]).unwrap_or_else(|e| panic!("{e:?}"));
        let pool = DescriptorPool::from_file_descriptor_set(files).unwrap();
        pool.get_message_by_name("slowburn.v1.Batch").unwrap()
    })
}

/// The bytes of a `Batch`.
pub fn encode(message: &Value) -> Vec<u8> {
    DynamicMessage::deserialize(batch().clone(), message).unwrap_or_else(|e| panic!("{e}: {message}")).encode_to_vec()
}
