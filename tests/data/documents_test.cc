#include "data/documents.h"

#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "data/utf8.h"
#include "test_text.h"

using namespace degu;

namespace {

struct Parsed {
  std::vector<Document> documents;
  std::vector<BadInput> bad;
  std::vector<std::string> texts() const {
    std::vector<std::string> out;
    for (const Document& d : documents) out.push_back(d.text);
    return out;
  }
};

Parsed parse_file(const std::string& path, const DocumentRules& rules = {}) {
  Parsed out;
  DocumentReader reader(path, rules, [&](const BadInput& bad) { out.bad.push_back(bad); });
  Document document;
  while (reader.next(document)) out.documents.push_back(document);
  return out;
}

class Folder : public test::TemporaryFolder {
 public:
  Parsed parse(const std::string& name, const std::string& content,
               const DocumentRules& rules = {}) {
    std::filesystem::remove(*this / name);  // rewriting in place would wait for the disk
    std::ofstream(*this / name, std::ios::binary) << content;
    return parse_file(*this / name, rules);
  }
};

using Strings = std::vector<std::string>;

}  // namespace

TEST_CASE("well-formed UTF-8 and nothing else", "[documents]") {
  for (const char* good :
       {"", "a", "é", "€", "🙂", "\xf4\x8f\xbf\xbf", "12345678é", "\xed\x9f\xbf"}) {
    CHECK(find_bad_utf8(good) == std::string::npos);
  }
  struct Case {
    std::string text;
    size_t at;
  };
  for (const auto& [text, at] : std::vector<Case>{{"\x80", 0},
                                                  {"ab\xff", 2},
                                                  {"\xc0\x80", 0},
                                                  {"\xc1\xbf", 0},
                                                  {"\xe0\x9f\xbf", 0},
                                                  {"\xed\xa0\x80", 0},
                                                  {"\xf0\x8f\xbf\xbf", 0},
                                                  {"\xf4\x90\x80\x80", 0},
                                                  {"\xf5\x80\x80\x80", 0},
                                                  {"12345678\xe2\x82", 8},
                                                  {"\xc3", 0},
                                                  {std::string("abcdefg\0h", 9), 7},
                                                  {std::string("\0", 1), 0}}) {
    CHECK(find_bad_utf8(text) == at);
  }
  CHECK(utf8_cut("aé", 2) == 1);
  CHECK(utf8_cut("aé", 3) == 3);
  CHECK(utf8_cut("🙂🙂", 7) == 4);
}

TEST_CASE("how plain text becomes documents", "[documents]") {
  Folder folder;
  const std::string text = "\n\none\n  two\n\n\nthree \n\nfour";
  CHECK(folder.parse("a.txt", text).texts() == Strings{"one\n  two\n\n\nthree \n\nfour"});
  CHECK(folder.parse("a.txt", text, {.split = SplitRule::kFile}).texts() ==
        Strings{"one\n  two\n\n\nthree \n\nfour"});
  const Parsed paragraphs = folder.parse("a.txt", text, {.split = SplitRule::kParagraphs});
  CHECK(paragraphs.texts() == Strings{"one\n  two", "three", "four"});
  CHECK(paragraphs.documents[0].line == 3);
  CHECK(paragraphs.documents[1].line == 7);
  CHECK(paragraphs.documents[2].line == 9);
  CHECK(folder.parse("a.txt", text, {.split = SplitRule::kLines}).texts() ==
        Strings{"one", "  two", "three", "four"});
  CHECK(folder
            .parse("a.txt", "\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n",
                   {.split = SplitRule::kParagraphs})
            .texts() == Strings{"one\ntwo", "three"});
}

TEST_CASE("pages hold whole paragraphs, long ones are cut", "[documents]") {
  Folder folder;
  std::string text;
  for (int i = 0; i < 50; ++i) text += std::string(static_cast<size_t>(5 + i % 40), 'a') + "\n\n";
  const DocumentRules rules{.document_bytes = 100};
  const Parsed pages = folder.parse("a.txt", text, rules);
  std::string joined;
  for (const Document& d : pages.documents) {
    CHECK(d.text.size() <= 100);
    joined += d.text + "\n\n";
  }
  CHECK(joined == text);

  // One line of a megabyte, with and without spaces, then one character per three bytes.
  for (const std::string& unit : {std::string("word "), std::string("x"), std::string("€")}) {
    std::string longest = "short\n\n";
    while (longest.size() < 1000000) longest += unit;
    const Parsed cut = folder.parse("a.txt", longest, {.document_bytes = 1000});
    CHECK(cut.bad.empty());
    size_t total = 0;
    for (const Document& d : cut.documents) {
      REQUIRE(d.text.size() <= 1000);
      total += d.text.size();
    }
    CHECK(total > 990000);
    CHECK(cut.documents.back().line == 3);
  }
}

TEST_CASE("JSON lines", "[documents]") {
  Folder folder;
  const Parsed parsed =
      folder.parse("a.jsonl",
                   "{\"text\": \"one\\n\\u00e9 \", \"meta\": {\"text\": \"no\"}}\n"
                   "\n"
                   "  {\"domain\": \"code\", \"text\": \"two\", \"n\": [1, {}]} \r\n"
                   "{\"text\": \"three\", \"domain\": null}");
  CHECK(parsed.bad.empty());
  CHECK(parsed.texts() == Strings{"one\né ", "two", "three"});
  CHECK(parsed.documents[1].domain == "code");
  CHECK(parsed.documents[1].line == 3);
  CHECK(parsed.documents[2].domain.empty());
  CHECK(folder.parse("b.ndjson", "{\"body\": \"x\"}", {.text_key = "body"}).texts() ==
        Strings{"x"});
}

TEST_CASE("bad records are reported by line and left out", "[documents]") {
  Folder folder;
  const Strings lines = {"{\"text\": \"good\"}",
                         "{\"text\": \"cut off",
                         "[1, 2]",
                         "{\"text\": 5}",
                         "{\"title\": \"x\"}",
                         "{\"text\": \" \\n\"}",
                         "{\"text\": \"nul \\u0000\"}",
                         "{\"text\": \"\xff\"}",
                         "{\"text\": \"half \\ud800 pair\"}",
                         "{\"text\": \"x\", \"domain\": \"../up\"}",
                         "{\"text\": \"x\"} trailing",
                         "{\"text\": {\"text\": \"x\"}}",
                         "{\"text\": \"good\"}"};
  std::string content;
  for (const std::string& line : lines) content += line + "\n";
  const Parsed parsed = folder.parse("a.jsonl", content);
  CHECK(parsed.texts() == Strings{"good", "good"});
  REQUIRE(parsed.bad.size() == lines.size() - 2);
  for (size_t i = 0; i < parsed.bad.size(); ++i) {
    CHECK(parsed.bad[i].line == static_cast<int64_t>(i) + 2);
    CHECK(parsed.bad[i].file == folder / "a.jsonl");
    CHECK_FALSE(parsed.bad[i].reason.empty());
  }
}

TEST_CASE("bad plain text is reported by line and left out", "[documents]") {
  Folder folder;
  const DocumentRules rules{.split = SplitRule::kParagraphs};
  const Parsed parsed = folder.parse("a.txt", "one\n\ntwo\n\xff three\n\nfour\n", rules);
  CHECK(parsed.texts() == Strings{"one", "four"});
  REQUIRE(parsed.bad.size() == 1);
  CHECK(parsed.bad[0].line == 4);
  CHECK(parsed.bad[0].reason == "invalid UTF-8");

  const std::string binary("PK\x03\x04\n\0\0", 7);
  for (const char* name : {"b.txt", "b.jsonl"}) {
    const Parsed refused = folder.parse(name, binary);
    CHECK(refused.documents.empty());
    REQUIRE(refused.bad.size() == 1);
    CHECK(refused.bad[0].line == 2);
  }
  for (const char* name : {"c.txt", "c.jsonl"}) {
    for (const char* content : {"", "\n \n\n"}) {
      const Parsed empty = folder.parse(name, content);
      CHECK(empty.documents.empty());
      CHECK(empty.bad.size() == 1);
    }
  }
  CHECK_THROWS_AS(parse_file(folder / "absent.txt"), IoError);
  CHECK_THROWS_AS(parse_file(folder / ""), IoError);
}

TEST_CASE("gzip of either, whole and broken off", "[documents]") {
  Folder folder;
  std::string plain;
  std::string json;
  for (int i = 0; i < 3000; ++i) {
    const std::string text = test::english_like(5, i, 300);
    plain += text.substr(0, text.find('\n')) + "\n\n";
    json += "{\"text\": \"document " + std::to_string(i) + "\"}\n";
  }
  for (const auto& [name, content] : {std::pair{"a.txt", plain}, std::pair{"a.jsonl", json}}) {
    const DocumentRules rules{.split = SplitRule::kParagraphs};
    const Parsed direct = folder.parse(name, content, rules);
    const std::string packed = test::gzip(content);
    const Parsed whole = folder.parse(std::string(name) + ".gz", packed, rules);
    CHECK(whole.bad.empty());
    CHECK(whole.texts() == direct.texts());

    for (size_t keep : {size_t{3}, size_t{12}, packed.size() / 2, packed.size() - 1}) {
      const Parsed part = folder.parse(std::string(name) + ".gz", packed.substr(0, keep), rules);
      REQUIRE_FALSE(part.bad.empty());
      REQUIRE(part.documents.size() <= direct.documents.size());
      for (size_t i = 0; i < part.documents.size(); ++i) {
        REQUIRE(part.documents[i].text == direct.documents[i].text);
      }
      if (keep == packed.size() / 2) {
        CHECK(part.bad.size() == 1);
        CHECK(part.bad[0].line > 100);
        CHECK(part.documents.size() > 100);
      }
    }
    std::string damaged = packed;
    damaged[packed.size() / 2] = static_cast<char>(damaged[packed.size() / 2] ^ 0x55);
    CHECK_FALSE(folder.parse(std::string(name) + ".gz", damaged, rules).bad.empty());
  }
}

// Whatever the bytes, the reader ends, and what it yields is text.
TEST_CASE("mutated input never breaks the reader", "[documents][fuzz]") {
  Folder folder;
  Strings seeds = {"one\ntwo\n\nthree\r\n",
                   "{\"text\": \"a\\u00e9\", \"domain\": \"x\"}\n{\"text\": \"b\"}\n",
                   test::gzip("plain\n\ntext\n"), test::gzip("{\"text\": \"a\"}\n"),
                   test::english_like(3, 0, 2000)};
  const char* names[] = {"f.txt", "f.jsonl", "f.txt.gz", "f.jsonl.gz"};
  const Strings tokens = {std::string(1, '\0'),
                          "\n",
                          "\r\n",
                          "\xff",
                          "{",
                          "}",
                          "\"",
                          "\\u",
                          "\\ud83d",
                          "[[[[",
                          "text",
                          "\x1f\x8b",
                          std::string(300, '['),
                          "\xef\xbb\xbf",
                          "\xe2\x82",
                          "1e999"};
  int64_t yielded = 0;
  for (uint64_t round = 0; round < 4000; ++round) {
    const RandomStream random(11, "fuzz", round);
    std::string content = seeds[random.below(0, seeds.size())];
    const uint64_t edits = random.below(1, 8);
    for (uint64_t e = 0; e < edits; ++e) {
      const uint64_t at = random.below(10 + 3 * e, content.size() + 1);
      const uint64_t value = random.bits64(11 + 3 * e);
      switch (random.below(12 + 3 * e, 5)) {
        case 0:
          if (at < content.size()) content[at] = static_cast<char>(value);
          break;
        case 1:
          content.insert(at, tokens[value % tokens.size()]);
          break;
        case 2:
          content.erase(at, value % 20);
          break;
        case 3:
          content.insert(at, content.substr(value % (content.size() + 1), 40));
          break;
        default:
          content.resize(at);
      }
      if (content.empty()) content = "x";
    }
    DocumentRules rules;
    rules.split = static_cast<SplitRule>(random.below(2, 4));
    rules.document_bytes = 64 + static_cast<int64_t>(random.below(3, 200));
    const Parsed parsed = folder.parse(names[random.below(4, 4)], content, rules);
    REQUIRE(parsed.documents.size() + parsed.bad.size() > 0);
    for (const Document& document : parsed.documents) {
      REQUIRE_FALSE(document.text.empty());
      REQUIRE(find_bad_utf8(document.text) == std::string::npos);
      REQUIRE(document.line >= 1);
      REQUIRE((document.domain.empty() || valid_domain_name(document.domain)));
    }
    yielded += static_cast<int64_t>(parsed.documents.size());
  }
  CHECK(yielded > 4000);
}
