//! Tests of HPACK: the examples of the RFC, blocks that must be refused, and the output of the encoder.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Scheme};

use super::{Decoder, Field, Invalid, decode::Malformed, encode_head, encode_table_size, encode_trailers, field::Name};

mod random;

/// The bytes that the RFC prints.
fn hex(printed: &str) -> Vec<u8> {
    let digits: Vec<u8> = printed.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn field(name: &str, value: &str) -> Field {
    Name::parse(name.as_bytes()).with(value.as_bytes(), false)
}

fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Malformed> {
    let mut fields = Vec::new();
    decoder.decode(block, |field, _| fields.push(field))?;
    Ok(fields)
}

/// The blocks of an example, decoded one after the other: each with its fields, the table's size after it, and the
/// entries of the table.
type Example<'a> = (&'a str, &'a [(&'a str, &'a str)], usize, &'a [(&'a str, &'a str)]);
fn check(max_table: usize, examples: &[Example<'_>]) {
    let mut decoder = Decoder::new(max_table);
    let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| field(name, value)).collect::<Vec<_>>();
    for (block, expected, size, table) in examples {
        let mut sizes = Vec::new();
        let mut found = Vec::new();
        decoder
            .decode(&hex(block), |field, size| {
                found.push(field);
                sizes.push(size);
            })
            .unwrap();
        assert_eq!(found, owned(expected), "{block}");
        assert_eq!(sizes, expected.iter().map(|(name, value)| name.len() + value.len() + 32).collect::<Vec<_>>());
        assert_eq!(decoder.table().size(), *size, "{block}");
        assert_eq!(decoder.table().entries().cloned().collect::<Vec<_>>(), owned(table), "{block}");
    }
}

#[test]
fn c_1_integers() {
    let mut decoder = Decoder::new(4096);
    assert_eq!(fields(&mut decoder, &hex("3f9a0a")), Ok(Vec::new()));
    assert_eq!(decoder.table().limit(), 1337);
    assert_eq!(fields(&mut decoder, &hex("2a")), Ok(Vec::new()));
    assert_eq!(decoder.table().limit(), 10);
    let mut out = Vec::new();
    encode_table_size(&mut out, 10);
    encode_table_size(&mut out, 1337);
    encode_table_size(&mut out, 31);
    assert_eq!(out, hex("2a 3f9a0a 3f00"));
}

#[test]
fn c_2_forms_of_a_field() {
    let custom = [("custom-key", "custom-header")];
    check(4096, &[("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", &custom, 55, &custom)]);
    check(4096, &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], 0, &[])]);
    check(4096, &[("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")], 0, &[])]);
    check(4096, &[("82", &[(":method", "GET")], 0, &[])]);
}

#[test]
fn c_3_and_c_4_requests() {
    let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
    let second = [&first[..], &[("cache-control", "no-cache")]].concat();
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ];
    let table = [("custom-key", "custom-value"), ("cache-control", "no-cache"), (":authority", "www.example.com")];
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        check(
            4096,
            &[
                (blocks[0], &first, 57, &table[2..]),
                (blocks[1], &second, 110, &table[1..]),
                (blocks[2], &third, 164, &table),
            ],
        );
    }
}

/// The RFC's examples of responses, for their effect on a table of 256 bytes.
#[test]
fn c_5_and_c_6_eviction() {
    let (date, later) = (("date", "Mon, 21 Oct 2013 20:13:21 GMT"), ("date", "Mon, 21 Oct 2013 20:13:22 GMT"));
    let (private, location) = (("cache-control", "private"), ("location", "https://www.example.com"));
    let (found, not_modified) = ((":status", "302"), (":status", "307"));
    let cookie = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
    let gzip = ("content-encoding", "gzip");
    for blocks in [
        [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
             546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
             6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630
             303b 2076 6572 7369 6f6e 3d31",
        ],
        [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
             8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
             dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ],
    ] {
        check(
            256,
            &[
                (blocks[0], &[found, private, date, location], 222, &[location, date, private, found]),
                (blocks[1], &[not_modified, private, date, location], 222, &[not_modified, location, date, private]),
                (
                    blocks[2],
                    &[(":status", "200"), private, later, location, gzip, cookie],
                    215,
                    &[cookie, gzip, later],
                ),
            ],
        );
    }
}

#[test]
fn the_static_table_as_others_write_it() {
    let mut decoder = Decoder::new(4096);
    for (index, name, value) in [
        (2, ":method", "GET"),
        (3, ":method", "POST"),
        (4, ":path", "/"),
        (5, ":path", "/index.html"),
        (6, ":scheme", "http"),
        (7, ":scheme", "https"),
        (16, "accept-encoding", "gzip, deflate"),
        (23, "authorization", ""),
        (31, "content-type", ""),
        (58, "user-agent", ""),
        (61, "www-authenticate", ""),
    ] {
        assert_eq!(fields(&mut decoder, &[0x80 | index]), Ok(vec![field(name, value)]), "{index}");
    }
    // `http` predefines each of these names, so they are compared and cloned as numbers.
    for (name, _) in &super::table::FIXED[super::table::HEADERS - 1..] {
        assert_eq!(name.to_ascii_lowercase(), *name);
        assert_eq!(HeaderName::from_static(name), HeaderName::from_bytes(name.as_bytes()).unwrap());
    }
}

#[test]
fn indices_that_nothing_is_at() {
    for block in ["80", "be", "ff00", "ff80 0a", "7e 01 61", "7f00 0161", "0f2f 0161", "1f2f 0161"] {
        assert_eq!(fields(&mut Decoder::new(4096), &hex(block)), Err(Malformed::Index), "{block}");
    }
    // There is one entry, at index 62, and after its eviction there is none.
    let mut decoder = Decoder::new(4096);
    assert_eq!(fields(&mut decoder, b"\x40\x01a\x01b\xbe"), Ok(vec![field("a", "b"); 2]));
    assert_eq!(fields(&mut decoder, &hex("bf")), Err(Malformed::Index));
    assert_eq!(fields(&mut decoder, &hex("20 be")), Err(Malformed::Index));
}

#[test]
fn integers_that_are_too_long() {
    for block in [
        "ff ffff ffff 7f",
        "ff 8080 8080 00",
        "3f ffff ffff ffff ffff ffff 01",
        "7f ffff ffff ff",
        "0f 8080 8080 8080 00",
        "00 7f 8080 8080 00",
        "00 01 61 ff 8080 8080 00",
    ] {
        assert_eq!(fields(&mut Decoder::new(4096), &hex(block)), Err(Malformed::Integer), "{block}");
    }
    // Zeros that change nothing are allowed up to a limit.
    assert_eq!(fields(&mut Decoder::new(4096), &hex("0f 8080 8000 00")), Ok(vec![field("accept-charset", "")]));
}

#[test]
fn every_prefix_of_a_field_is_truncated() {
    for block in [
        &b"\x40\x0acustom-key\x0dcustom-header"[..],
        b"\x0f\x80\x00\x03abc",
        b"\x10\x7f\x00",
        b"\x00\x01a\x7f\x80\x01",
        b"\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
    ] {
        for end in 1..block.len() {
            assert_eq!(fields(&mut Decoder::new(4096), &block[..end]), Err(Malformed::Truncated), "{end} of {block:?}");
        }
    }
    assert_eq!(fields(&mut Decoder::new(4096), b""), Ok(Vec::new()));
}

#[test]
fn strings_that_are_not_in_the_code() {
    for block in ["00 81 18 00", "00 81 ff 00", "00 82 1fff 00", "00 01 61 84 ffff ffff", "04 84 ffff fffc"] {
        assert_eq!(fields(&mut Decoder::new(4096), &hex(block)), Err(Malformed::Huffman), "{block}");
    }
    // Too long for the buffer on the stack.
    let mut block = vec![0x00, 0x01, b'a'];
    let value = vec![b'0'; 8000];
    let mut huffman = Vec::new();
    httlib_huffman::encode(&value, &mut huffman).unwrap();
    block.extend([0xff, 0x89, 0x26]);
    block.extend(&huffman);
    assert_eq!(huffman.len(), 5000);
    let expected = Field::Header(HeaderName::from_static("a"), HeaderValue::from_bytes(&value).unwrap());
    assert_eq!(fields(&mut Decoder::new(4096), &block), Ok(vec![expected]));
}

#[test]
fn the_size_of_the_table_changes_before_fields_only_and_within_bounds() {
    let mut decoder = Decoder::new(4096);
    assert_eq!(fields(&mut decoder, b"\x40\x01a\x01b\x40\x01c\x01d"), Ok(vec![field("a", "b"), field("c", "d")]));
    // Down to 34 bytes: one of the two entries fits.
    assert_eq!(fields(&mut decoder, &hex("3f03 be")), Ok(vec![field("c", "d")]));
    assert_eq!(decoder.table().size(), 34);
    // Down to zero and back: the table is empty.
    assert_eq!(fields(&mut decoder, &hex("20 3fe11f 82")), Ok(vec![field(":method", "GET")]));
    assert_eq!((decoder.table().size(), decoder.table().limit()), (0, 4096));
    assert_eq!(fields(&mut decoder, &hex("3fe21f")), Err(Malformed::TableSize));
    assert_eq!(fields(&mut decoder, &hex("82 20")), Err(Malformed::LateTableSize));
    assert_eq!(fields(&mut decoder, b"\x40\x01a\x01b\x20"), Err(Malformed::LateTableSize));
}

#[test]
fn what_is_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(64);
    assert_eq!(
        fields(&mut decoder, b"\x40\x01a\x1f0123456789012345678901234567890"),
        Ok(vec![field("a", "0123456789012345678901234567890")])
    );
    assert_eq!(decoder.table().size(), 64);
    // The name comes from the entry that this field evicts.
    let block = b"\x7e\x2001234567890123456789012345678901";
    assert_eq!(fields(&mut decoder, block), Ok(vec![field("a", "01234567890123456789012345678901")]));
    assert_eq!((decoder.table().size(), decoder.table().entries().count()), (0, 0));
    // The same for a field that fits.
    assert_eq!(fields(&mut decoder, b"\x40\x01b\x01c\x7e\x01d"), Ok(vec![field("b", "c"), field("b", "d")]));
    assert_eq!(decoder.table().entries().cloned().collect::<Vec<_>>(), [field("b", "d")]);
}

#[test]
fn nothing_is_allocated_for_a_table_that_is_not_used() {
    let mut decoder = Decoder::new(4096);
    assert_eq!(fields(&mut decoder, &hex("82 86 84 00 0161 0162")).map(|fields| fields.len()), Ok(4));
    assert_eq!(decoder.table().allocated(), 0);
}

#[test]
fn fields_in_the_types_of_requests() {
    assert_eq!(field(":method", "POST"), Field::Method(Method::POST));
    assert_eq!(field(":scheme", "https"), Field::Scheme(Scheme::HTTPS));
    assert!(matches!(field(":authority", "[::1]:2379"), Field::Authority(authority) if authority == "[::1]:2379"));
    let range = "/etcdserverpb.KV/Range";
    assert!(matches!(field(":path", range), Field::Path(path) if path.as_str() == range));
    assert!(matches!(field(":path", "*"), Field::Path(path) if path.as_str() == "*"));
    assert!(matches!(field(":path", "/a?b=c"), Field::Path(path) if path.query() == Some("b=c")));
    for name in ["grpc-timeout", "grpc-encoding", "grpc-status", "te"] {
        for value in ["gzip", "identity", "application/grpc", "application/grpc+proto"] {
            let expected = (HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(field(name, value), Field::Header(expected.0, expected.1));
        }
    }
    assert_eq!(field("te", "trailers"), Field::Header(header::TE, HeaderValue::from_static("trailers")));
}

#[test]
fn fields_that_requests_do_not_have() {
    for (name, value, why) in [
        ("", "a", Invalid::Name),
        ("Te", "trailers", Invalid::Name),
        ("a b", "c", Invalid::Name),
        ("a\0", "c", Invalid::Name),
        ("é", "c", Invalid::Name),
        (":", "c", Invalid::PseudoHeader),
        (":status", "20", Invalid::Status),
        (":protocol", "websocket", Invalid::PseudoHeader),
        (":Method", "GET", Invalid::PseudoHeader),
        (":method", "", Invalid::Method),
        (":method", "GE T", Invalid::Method),
        (":scheme", "", Invalid::Scheme),
        (":scheme", "http:", Invalid::Scheme),
        (":authority", "", Invalid::Authority),
        (":authority", "a b", Invalid::Authority),
        (":authority", "a/b", Invalid::Authority),
        (":path", "", Invalid::Path),
        (":path", "a", Invalid::Path),
        (":path", "/a b", Invalid::Path),
        ("a", "b\0", Invalid::Value(HeaderName::from_static("a"))),
        ("a", "b\r\nc: d", Invalid::Value(HeaderName::from_static("a"))),
        ("a", "b\n", Invalid::Value(HeaderName::from_static("a"))),
    ] {
        assert_eq!(field(name, value), Field::Invalid(why), "{name}: {value}");
        // The field is indexed like any other, and its name can be referred to.
        let mut decoder = Decoder::new(4096);
        let mut block = vec![0x40, name.len() as u8];
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
        block.extend(b"\xbe\x7e\x01/\x0f\x30\x01*");
        let expected = [field(name, value), field(name, value), field(name, "/"), field(name, "*")];
        assert_eq!(fields(&mut decoder, &block).as_deref(), Ok(&expected[..]));
        assert_eq!(decoder.table().size(), 2 * (name.len() + 32) + value.len() + 1);
    }
    assert_eq!(
        fields(&mut Decoder::new(4096), &hex("81 88")),
        Ok(vec![Field::Invalid(Invalid::Authority), Field::Status(StatusCode::OK)])
    );
}

#[test]
fn what_is_never_indexed_is_sensitive() {
    let sensitive = |block: &[u8]| match &fields(&mut Decoder::new(4096), block).unwrap()[..] {
        [Field::Header(_, value)] => value.is_sensitive(),
        other => panic!("{other:?}"),
    };
    assert!(sensitive(b"\x10\x01a\x01b"));
    assert!(sensitive(b"\x1f\x08\x01b"));
    assert!(!sensitive(b"\x00\x01a\x01b"));
    assert!(!sensitive(b"\x40\x01a\x01b"));
    // A value that all connections share is marked as sensitive for this field alone.
    assert!(sensitive(b"\x10\x01a\x04gzip"));
    assert!(!sensitive(b"\x00\x01a\x04gzip"));
}

#[test]
fn heads_and_trailers_of_responses() {
    let encoded = |status, headers: &HeaderMap| {
        let mut out = Vec::new();
        encode_head(&mut out, status, headers);
        out
    };
    let none = HeaderMap::new();
    for (status, index) in [(200, 0x88), (204, 0x89), (206, 0x8a), (304, 0x8b), (400, 0x8c), (404, 0x8d), (500, 0x8e)] {
        assert_eq!(encoded(StatusCode::from_u16(status).unwrap(), &none), [index]);
    }
    assert_eq!(encoded(StatusCode::SERVICE_UNAVAILABLE, &none), b"\x08\x03503");

    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("0"));
    headers.append("grpc-status", HeaderValue::from_static(""));
    let mut token = HeaderValue::from_static("secret");
    token.set_sensitive(true);
    headers.insert("token", token.clone());
    headers.insert(header::AUTHORIZATION, token);
    let long = "x".repeat(1000);
    headers.insert(HeaderName::from_bytes(long.as_bytes()).unwrap(), HeaderValue::from_str(&long).unwrap());
    let block = encoded(StatusCode::OK, &headers);
    assert!(block.starts_with(b"\x88\x0f\x10\x10application/grpc\x00\x0bgrpc-status\x010\x00\x0bgrpc-status\x00"));
    assert!(block.windows(13).any(|part| part == b"\x10\x05token\x06secret"[..13].as_ref()));
    assert!(block.windows(9).any(|part| part == b"\x1f\x08\x06secret"));

    let mut trailers = Vec::new();
    encode_trailers(&mut trailers, &headers);
    assert_eq!(trailers, block[1..]);
    let mut decoder = Decoder::new(4096);
    let expected: Vec<_> = headers.iter().map(|(name, value)| Field::Header(name.clone(), value.clone())).collect();
    assert_eq!(fields(&mut decoder, &trailers), Ok(expected));
    assert_eq!(decoder.table().allocated(), 0);
}
