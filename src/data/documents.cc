#include "data/documents.h"

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "data/line_reader.h"
#include "data/utf8.h"

namespace degu {
namespace {

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\f\v") == std::string_view::npos;
}

bool has_suffix(std::string_view path, std::string_view suffix) {
  if (path.size() < suffix.size()) return false;
  path.remove_prefix(path.size() - suffix.size());
  return std::equal(path.begin(), path.end(), suffix.begin(), [](char a, char b) {
    return (a >= 'A' && a <= 'Z' ? static_cast<char>(a + 32) : a) == b;
  });
}

bool is_json_lines(std::string_view path) {
  if (has_suffix(path, ".gz")) path.remove_suffix(3);
  return has_suffix(path, ".jsonl") || has_suffix(path, ".ndjson");
}

// Takes two top-level strings out of a JSON object and checks the rest.
class RecordHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit RecordHandler(const DocumentRules& rules) : rules_(rules) {}

  std::optional<std::string> text;
  std::optional<std::string> domain;
  bool is_object = false;
  bool wrong_type = false;  // one of the two is not a string
  std::string error;

  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(number_integer_t) override { return other(); }
  bool number_unsigned(number_unsigned_t) override { return other(); }
  bool number_float(number_float_t, const string_t&) override { return other(); }
  bool binary(binary_t&) override { return other(); }
  bool string(string_t& value) override {
    if (depth_ != 1) return true;
    if (key_ == Key::kText) {
      text = std::move(value);
    } else if (key_ == Key::kDomain) {
      domain = std::move(value);
    }
    return true;
  }
  bool start_object(std::size_t) override {
    other();
    if (depth_ == 0) is_object = true;
    ++depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    other();
    ++depth_;
    return true;
  }
  bool end_object() override { return --depth_, true; }
  bool end_array() override { return --depth_, true; }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      key_ = name == rules_.text_key     ? Key::kText
             : name == rules_.domain_key ? Key::kDomain
                                         : Key::kOther;
    }
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    error = "not JSON (byte " + std::to_string(position) + " of the line)";
    return false;
  }

 private:
  enum class Key { kText, kDomain, kOther };
  bool other() {
    if (depth_ == 1 && key_ == Key::kText) wrong_type = true;
    return true;
  }

  const DocumentRules& rules_;
  Key key_ = Key::kOther;
  int depth_ = 0;
};

}  // namespace

bool valid_domain_name(std::string_view name) {
  if (name.empty() || name.size() > 64 || name.front() == '.' || name.front() == '-') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
}

struct DocumentReader::Impl {
  Impl(const std::string& path_, const DocumentRules& rules_,
       std::function<void(const BadInput&)> on_bad_)
      : path(path_), rules(rules_), on_bad(std::move(on_bad_)), lines(path_) {
    json = is_json_lines(path);
    limit =
        static_cast<size_t>(rules.split == SplitRule::kFile
                                ? kMaxDocumentBytes
                                : std::clamp<int64_t>(rules.document_bytes, 64, kMaxDocumentBytes));
    start();
  }

  std::string path;
  DocumentRules rules;
  std::function<void(const BadInput&)> on_bad;
  LineReader lines;
  bool json = false;
  bool done = false;
  bool mark_at_start = false;
  size_t limit = 0;
  std::deque<Document> ready;

  // Plain text: the page being gathered and the paragraph or line being read.
  std::string page, part;
  int64_t page_line = 0, part_line = 0;
  int64_t gap = 0;  // line ends between page and part
  std::string record;
  bool record_too_long = false;
  int64_t produced = 0;  // documents and reports

  void report(int64_t line, std::string reason) {
    ++produced;
    on_bad({path, line, std::move(reason)});
  }

  void start() {
    std::string_view head = lines.peek();
    if (head.empty() && lines.failure().empty()) {
      report(0, "empty file");
      done = true;
      return;
    }
    mark_at_start = head.starts_with("\xef\xbb\xbf");
    if (const size_t zero = head.find('\0'); zero != std::string_view::npos) {
      report(1 + std::count(head.begin(), head.begin() + static_cast<int64_t>(zero), '\n'),
             "binary file (NUL byte)");
      done = true;
    }
  }

  // One document of plain text, checked.
  void emit(std::string text, int64_t line) {
    const size_t bad = find_bad_utf8(text);
    if (bad != std::string::npos) {
      const auto before = std::count(text.begin(), text.begin() + static_cast<int64_t>(bad), '\n');
      report(line + before, text[bad] == '\0' ? "NUL byte" : "invalid UTF-8");
      return;
    }
    text.resize(text.find_last_not_of(" \t\r\n\f\v") + 1);  // npos + 1 is 0
    if (text.empty()) return;
    ++produced;
    ready.push_back({std::move(text), {}, line});
  }

  // Where to cut a text that is longer than the limit.
  size_t cut_of(std::string_view text) const {
    const size_t line_end = text.rfind('\n', limit - 1);
    if (line_end != std::string_view::npos && line_end >= limit / 2) return line_end + 1;
    const size_t space = text.rfind(' ', limit - 1);
    if (space != std::string_view::npos && space >= limit / 2) return space + 1;
    return utf8_cut(text, limit);
  }

  void emit_page() {
    if (!page.empty()) emit(std::exchange(page, {}), page_line);
  }

  // Cuts the front of `part` off while it is too long.
  void shorten_part() {
    while (part.size() > limit) {
      emit_page();
      const size_t cut = cut_of(part);
      const std::string front = part.substr(0, cut);
      emit(front, part_line);
      part_line += std::count(front.begin(), front.end(), '\n');
      part.erase(0, cut);
      gap = 0;
    }
  }

  void end_part() {
    if (is_blank(part)) {
      part.clear();
      return;
    }
    const bool gather = rules.split == SplitRule::kPages || rules.split == SplitRule::kFile;
    const auto between = static_cast<size_t>(gap);
    if (!page.empty() && (!gather || page.size() + between + part.size() > limit)) emit_page();
    if (page.empty()) {
      page_line = part_line;
      page = std::exchange(part, {});
    } else {
      page.append(between, '\n');
      page += std::exchange(part, {});
    }
    gap = 1;
    if (!gather) emit_page();
  }

  void take_plain(const LineReader::Piece& piece, bool starts_line) {
    std::string_view text = piece.text;
    if (starts_line && mark_at_start && piece.line == 1) text.remove_prefix(3);
    if (starts_line) {
      if (part.empty()) {
        part_line = piece.line;
      } else {
        part += '\n';
      }
      line_start_ = part.size();
    }
    part += text;
    if (piece.ends_line) {
      if (part.size() > line_start_ && part.back() == '\r') part.pop_back();
      if (is_blank(std::string_view(part).substr(line_start_))) {
        // A blank line ends the paragraph; it is not part of it.
        const bool had_text = line_start_ > 0;
        part.resize(had_text ? line_start_ - 1 : 0);
        if (had_text) end_part();
        ++gap;
        shorten_part();
        return;
      }
      if (rules.split == SplitRule::kLines) {
        shorten_part();
        end_part();
        return;
      }
    }
    const size_t before = part.size();
    shorten_part();
    line_start_ -= std::min(line_start_, before - part.size());
  }
  size_t line_start_ = 0;

  void take_json(const LineReader::Piece& piece, bool starts_line) {
    if (starts_line) {
      record.clear();
      record_too_long = false;
    }
    std::string_view text = piece.text;
    if (starts_line && mark_at_start && piece.line == 1) text.remove_prefix(3);
    if (!record_too_long) record += text;
    // Escapes make JSON up to six times as long as its text.
    if (record.size() > static_cast<size_t>(kMaxDocumentBytes) * 6) {
      record_too_long = true;
      record.clear();
    }
    if (piece.ends_line) parse_record(piece.line);
  }

  void parse_record(int64_t line) {
    if (record_too_long) return report(line, "record too long");
    if (is_blank(record)) return;
    RecordHandler handler(rules);
    if (!nlohmann::json::sax_parse(record, &handler)) {
      const bool utf8 = find_bad_utf8(record) == std::string::npos;
      return report(line, utf8 ? handler.error : "invalid UTF-8 or NUL byte");
    }
    if (!handler.is_object) return report(line, "not a JSON object");
    if (handler.wrong_type) return report(line, "'" + rules.text_key + "' is not a string");
    if (!handler.text) return report(line, "no '" + rules.text_key + "' in the record");
    if (handler.text->find_first_not_of(" \t\r\n\f\v") == std::string::npos) {
      return report(line, "empty text");
    }
    if (handler.text->size() > static_cast<size_t>(kMaxDocumentBytes)) {
      return report(line, "text too long");
    }
    if (find_bad_utf8(*handler.text) != std::string::npos) return report(line, "NUL character");
    if (handler.domain && !valid_domain_name(*handler.domain)) {
      return report(line, "domain is not a name of letters, digits, '_', '-' and '.'");
    }
    ++produced;
    ready.push_back({std::move(*handler.text), handler.domain.value_or(""), line});
  }

  void finish() {
    done = true;
    if (!lines.failure().empty()) {
      // The paragraph or record being read lacks its end; whole paragraphs before it stay.
      report(lines.line(), lines.failure());
      emit_page();
      return;
    }
    if (!json) {
      end_part();
      emit_page();
    }
    if (produced == 0) report(0, "no text in the file");
  }

  void advance() {
    LineReader::Piece piece;
    if (!lines.next(piece)) return finish();
    const bool starts_line = std::exchange(next_starts_line_, piece.ends_line);
    if (json) {
      take_json(piece, starts_line);
    } else {
      take_plain(piece, starts_line);
    }
  }
  bool next_starts_line_ = true;
};

DocumentReader::DocumentReader(const std::string& path, const DocumentRules& rules,
                               std::function<void(const BadInput&)> on_bad)
    : impl_(std::make_unique<Impl>(path, rules, std::move(on_bad))) {}
DocumentReader::~DocumentReader() = default;

bool DocumentReader::next(Document& out) {
  while (impl_->ready.empty()) {
    if (impl_->done) return false;
    impl_->advance();
  }
  out = std::move(impl_->ready.front());
  impl_->ready.pop_front();
  return true;
}

int64_t DocumentReader::file_position() const {
  return impl_->lines.file_position();
}

}  // namespace degu
