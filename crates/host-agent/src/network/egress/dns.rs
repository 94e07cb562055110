//! Messages of DNS: questions to the host's name servers, and answers to guests. Pure, apart from
//! the random id of a question.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::io;

/// Bounds of a UDP answer to a guest, in bytes. Every resolver accepts the lower bound (RFC 1035,
/// 4.2.1), and networks pass the upper bound whole. Between the bounds, the guest's own limit
/// holds.
const ANSWER_MIN: u16 = 512;
const ANSWER_MAX: u16 = 1232;
/// Most records of one answer, and most names that lead to one another in it.
const RECORDS_MAX: usize = 512;
const ALIASES_MAX: usize = 16;

/// Returns an answer that refuses a question.
pub(super) fn refused(asked: &Message) -> Option<Vec<u8>> {
    respond(asked, ResponseCode::Refused)
}

/// Returns an answer without records.
pub(super) fn respond(asked: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    written(asked, code, Vec::new(), false, usize::from(ANSWER_MIN))
}

/// Writes an answer to the guest, of at most `most` bytes. An answer that was cut, or does not fit,
/// is marked as truncated and has no records. The guest then asks again by TCP.
pub(super) fn written(
    asked: &Message,
    code: ResponseCode,
    records: Vec<Record>,
    cut: bool,
    most: usize,
) -> Option<Vec<u8>> {
    let mut answer = Message::error_msg(asked.metadata.id, asked.metadata.op_code, code);
    answer.add_queries(asked.queries.iter().cloned());
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    if asked.edns.is_some() {
        answer.set_edns(edns());
    }
    let mut whole = answer.clone();
    whole.add_answers(records);
    let whole = whole.to_vec().ok().filter(|bytes| bytes.len() <= most && !cut);
    whole.or_else(|| {
        answer.metadata.truncation = true;
        answer.to_vec().ok()
    })
}

/// Returns an EDNS record with no option.
fn edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(ANSWER_MAX).set_version(0);
    edns
}

/// Returns the largest UDP answer, in bytes, that the asker accepts.
pub(super) fn room(asked: &Message) -> u16 {
    let told = asked.edns.as_ref().map_or(ANSWER_MIN, Edns::max_payload);
    told.clamp(ANSWER_MIN, ANSWER_MAX)
}

/// Returns the records that lead from a question's name to its answer. These are aliases, and
/// records of the wanted type for any name on the way.
pub(super) fn leading(query: &Query, mut records: Vec<Record>) -> Vec<Record> {
    records.truncate(RECORDS_MAX);
    let mut names = vec![query.name().clone()];
    // The aliases may come in any order.
    while let Some(next) = names.last().filter(|_| names.len() <= ALIASES_MAX).and_then(|last| {
        let aliases = records.iter().filter(|record| record.name == *last);
        aliases.filter_map(|record| alias(&record.data)).find(|next| !names.contains(next)).cloned()
    }) {
        names.push(next);
    }
    let wanted = |record: &Record| {
        let kind = record.record_type();
        kind == query.query_type() || kind == RecordType::CNAME
    };
    records.retain(|record| {
        record.dns_class == DNSClass::IN && names.contains(&record.name) && wanted(record)
    });
    records
}

fn alias(data: &RData) -> Option<&Name> {
    if let RData::CNAME(name) = data { Some(&name.0) } else { None }
}

/// A question to a name server of the host.
pub(super) struct Question {
    id: u16,
    query: Query,
    pub bytes: Vec<u8>,
}

impl Question {
    /// Makes a question under a random id.
    pub(super) fn new(query: &Query) -> io::Result<Self> {
        let query = Query::query(query.name().clone(), query.query_type());
        let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        message.set_edns(edns());
        let bytes = message.to_vec().map_err(io::Error::other)?;
        Ok(Self { id: message.metadata.id, query, bytes })
    }

    /// Returns the answer to this question, if `bytes` are its answer.
    pub(super) fn answer(&self, bytes: &[u8]) -> Option<Message> {
        let answer = Message::from_vec(bytes).ok()?;
        let [query] = answer.queries.as_slice() else { return None };
        let same = query.name() == self.query.name()
            && query.query_type() == self.query.query_type()
            && query.query_class() == self.query.query_class();
        let answers = answer.metadata.message_type == MessageType::Response
            && answer.metadata.op_code == OpCode::Query;
        (answer.metadata.id == self.id && answers && same).then_some(answer)
    }
}

/// Feeds a guest's question and a name server's answer to the resolver. The written answer must
/// fit, and must answer only the guest's question.
///
/// # Panics
/// Panics when the written answer breaks these rules.
#[cfg(feature = "fuzzing")]
pub fn fuzz(data: &[u8]) {
    let (asked, answer) = data.split_at(data.len() / 2);
    for asked in [asked, data].into_iter().filter_map(|bytes| Message::from_vec(bytes).ok()) {
        let [query] = asked.queries.as_slice() else { continue };
        let Ok(question) = Question::new(query) else { continue };
        let mut answer = answer.to_vec();
        if let Some(id) = answer.first_chunk_mut::<2>() {
            *id = question.id.to_be_bytes();
        }
        let read = question.answer(&answer).or_else(|| Message::from_vec(&answer).ok());
        let records = leading(query, read.map(|read| read.answers).unwrap_or_default());
        for most in [room(&asked), u16::MAX] {
            let code = ResponseCode::NoError;
            let Some(bytes) = written(&asked, code, records.clone(), false, most.into()) else {
                continue;
            };
            let told = Message::from_vec(&bytes);
            let Ok(told) = told else { panic!("an answer of ours cannot be read: {bytes:?}") };
            assert!(told.metadata.truncation || bytes.len() <= usize::from(most));
            assert!(told.authorities.is_empty() && told.additionals.is_empty());
            assert_eq!(told.metadata.id, asked.metadata.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    fn record(name: &str, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), 60, data)
    }

    fn a(text: &str) -> RData {
        RData::A(text.parse::<Ipv4Addr>().unwrap().into())
    }

    fn cname(name: &str) -> RData {
        RData::CNAME(hickory_proto::rr::rdata::CNAME(Name::from_ascii(name).unwrap()))
    }

    #[test]
    fn forwarded_dns_query_copies_only_the_question() {
        let mut asked = Message::new(7, MessageType::Query, OpCode::Query);
        asked.add_query(Query::query(Name::from_ascii("a.com.").unwrap(), RecordType::A));
        asked.add_additional(record("secret.evil.org.", a("6.6.6.6")));
        asked.metadata.checking_disabled = true;
        let ids: HashSet<u16> = (0..50)
            .map(|_| {
                let question = Question::new(&asked.queries[0]).unwrap();
                let sent = Message::from_vec(&question.bytes).unwrap();
                assert_eq!(sent.queries, asked.queries);
                assert!(sent.additionals.is_empty() && sent.authorities.is_empty());
                assert!(sent.answers.is_empty() && !sent.metadata.checking_disabled);
                sent.metadata.id
            })
            .collect();
        assert!(ids.len() > 10, "{ids:?}");
    }

    #[test]
    fn dns_answer_is_matched_by_id_and_question() {
        let query = Query::query(Name::from_ascii("a.com.").unwrap(), RecordType::A);
        let question = Question::new(&query).unwrap();
        let answer = |id: u16, name: &str, kind: RecordType| {
            let mut answer = Message::response(id, OpCode::Query);
            answer.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            answer.to_vec().unwrap()
        };
        assert!(question.answer(&answer(question.id, "A.com.", RecordType::A)).is_some());
        for wrong in [
            answer(question.id ^ 1, "a.com.", RecordType::A),
            answer(question.id, "b.com.", RecordType::A),
            answer(question.id, "a.com.", RecordType::AAAA),
            question.bytes.clone(),
            vec![0; 5],
        ] {
            assert!(question.answer(&wrong).is_none());
        }
    }

    #[test]
    fn dns_answer_keeps_only_records_reachable_from_question() {
        let query = Query::query(Name::from_ascii("a.com.").unwrap(), RecordType::A);
        let records = vec![
            record("c.net.", a("1.1.1.1")),
            record("b.net.", cname("c.net.")),
            record("a.com.", cname("b.net.")),
            record("evil.org.", a("6.6.6.6")),
            record("c.net.", RData::TXT(hickory_proto::rr::rdata::TXT::new(vec!["x".into()]))),
        ];
        let kept = leading(&query, records.clone());
        assert_eq!(kept, records[..3]);
        // Aliases that lead in a circle must not loop for ever.
        let circle = vec![record("a.com.", cname("b.net.")), record("b.net.", cname("a.com."))];
        assert_eq!(leading(&query, circle.clone()), circle);
    }

    #[test]
    fn oversized_dns_answer_is_empty_and_truncated() {
        let mut asked = Message::new(7, MessageType::Query, OpCode::Query);
        asked.add_query(Query::query(Name::from_ascii("a.com.").unwrap(), RecordType::A));
        let records: Vec<Record> =
            (0..60u8).map(|n| record("a.com.", a(&format!("1.1.1.{n}")))).collect();
        let write = |cut, most| {
            let code = ResponseCode::NoError;
            Message::from_vec(&written(&asked, code, records.clone(), cut, most).unwrap()).unwrap()
        };
        let whole = write(false, 4096);
        assert_eq!((whole.answers.len(), whole.metadata.id), (60, 7));
        for short in [write(false, room(&asked).into()), write(true, 4096)] {
            assert!(short.answers.is_empty() && short.metadata.truncation);
        }
        asked.set_edns(edns());
        assert_eq!(room(&asked), ANSWER_MAX);
    }
}
