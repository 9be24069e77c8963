//! temp
use serde::Deserialize;
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiverConfig { pub name: String, pub email: Option<EmailConfig>, pub webhook: Option<WebhookConfig> }
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailConfig { pub to: Vec<String>, pub from: String, pub smtp: String }
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig { pub url: String, pub secret: Option<String> }
impl ReceiverConfig { pub fn check(&self) -> Result<(), String> { Ok(()) } }
