#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns protocol.hmm into C, a manual and a fuzz dictionary.

    scanner.py SCHEMA --out DIR

writes hmm_protocol.h, hmm_protocol.c, PROTOCOL.md, and for fuzzers wire.dict and corpus/, into DIR.
The schema is read in three steps: characters to tokens, tokens to
declarations (each remembers its line), declarations to layouts. Every mistake
is one line `file:line: message` on stderr and exit status 1, and then nothing
is written. Files whose content is unchanged keep their time stamp.
"""

import argparse
import os
import re
import struct
import sys

HEADER_SIZE = 16
WIRE_MAX = 65536 + 1024
MAX_FDS = 16
EVENT = 0x4000
REPLY = 0x8000
VA_END = 1 << 47

SCALARS = {
    'u8': ('uint8_t', 1), 'u16': ('uint16_t', 2), 'u32': ('uint32_t', 4), 'u64': ('uint64_t', 8),
    'i8': ('int8_t', 1), 'i16': ('int16_t', 2), 'i32': ('int32_t', 4), 'i64': ('int64_t', 8),
}

# Words that begin something in the schema; no declaration may have such a name.
KEYWORDS = {'protocol', 'version', 'enum', 'flags', 'record', 'request', 'reply', 'noreply',
            'event', 'fds', 'public', 'range', 'align', 'max', 'tail', 'pad', 'char', 'header', 'mask',
            *SCALARS}

C_WORDS = {
    'auto', 'break', 'case', 'char', 'const', 'continue', 'default', 'do', 'double', 'else', 'enum',
    'extern', 'float', 'for', 'goto', 'if', 'inline', 'int', 'long', 'register', 'restrict',
    'return', 'short', 'signed', 'sizeof', 'static', 'struct', 'switch', 'typedef', 'union',
    'unsigned', 'void', 'volatile', 'while', 'asm', 'typeof', 'unix', 'linux',
}


class SchemaError(Exception):
    def __init__(self, line, message):
        super().__init__(message)
        self.line = line


# ---- tokens -------------------------------------------------------------------

TOKEN = re.compile(r'''
    (?P<space>[ \t\r]+|\#[^\n]*)
  | (?P<newline>\n)
  | (?P<string>"[^"\n]*")
  | (?P<number>-?(?:0x[0-9A-Fa-f]+|[0-9]+)(?![A-Za-z0-9_]))
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<dots>\.\.)
  | (?P<mark>[{}\[\];=])
''', re.VERBOSE)


class Token:
    def __init__(self, kind, text, line):
        self.kind, self.text, self.line = kind, text, line

    def __str__(self):
        return 'end of file' if self.kind == 'end' else f"'{self.text}'"


def tokens_of(text):
    tokens, at, line = [], 0, 1
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            if text[at] == '"':
                raise SchemaError(line, 'string without an end')
            if text[at].isdigit() or text[at] == '-':
                raise SchemaError(line, f"bad number '{re.match('[-0-9A-Za-z_]+', text[at:])[0]}'")
            raise SchemaError(line, f'unexpected character {text[at]!r}')
        kind = match.lastgroup
        if kind == 'newline':
            line += 1
        elif kind != 'space':
            tokens.append(Token(kind, match.group(), line))
        at = match.end()
    tokens.append(Token('end', '', line))
    return tokens


# ---- declarations -------------------------------------------------------------

class Value:
    def __init__(self, name, number, doc, line):
        self.name, self.number, self.doc, self.line = name, number, doc, line


class Names:
    """An enum or a set of flags."""
    def __init__(self, kind, name, doc, line):
        self.kind, self.name, self.doc, self.line = kind, name, doc, line
        self.public = None      # header of include/hmm that has an enum of this name or values
        self.values = []

    @property
    def prefix(self):
        return 'HMM_' + self.name.upper()

    def constant(self, value):
        return f'{self.prefix}_{value.name.upper()}'


class Field:
    """kind: scalar, pad, enum, flags, text, range, tail."""
    def __init__(self, kind, name, line):
        self.kind, self.name, self.line = kind, name, line
        self.type = None        # scalar's name, or tail's: scalar or record
        self.names = None       # of an enum or flags; first its name, then the Names
        self.size = 0
        self.alignment = 1
        self.offset = 0
        self.length_name = None
        self.range_align = 1
        self.range_max = 0
        self.count = None       # name of the field that counts a tail


class Record:
    """A record or a message: named fields with a layout."""
    def __init__(self, kind, name, line):
        self.kind, self.name, self.line = kind, name, line
        self.doc = ''
        self.fields = []
        self.tail = None
        self.size = 0
        self.opcode = None
        self.own_opcode = False
        self.fds = (0, 0)
        self.answered = True    # of a request

    @property
    def base(self):
        return 0 if self.kind == 'record' else HEADER_SIZE

    @property
    def long_name(self):
        """hello_reply, for C; a reply with a number of its own needs no suffix."""
        return self.name + '_reply' if self.kind == 'reply' and not self.own_opcode else self.name

    @property
    def struct(self):
        prefix = 'hmm_record_' if self.kind == 'record' else 'hmm_msg_'
        return prefix + self.long_name

    @property
    def constant(self):
        return 'HMM_OP_' + self.long_name.upper()

    @property
    def spoken(self):
        return self.long_name.replace('_reply', ' reply') if self.kind == 'reply' \
            else self.long_name


class Schema:
    def __init__(self):
        self.name, self.version = None, None
        self.names = {}         # enums and flags, by name
        self.records = {}
        self.messages = []


class Parser:
    def __init__(self, text):
        self.tokens = tokens_of(text)
        self.at = 0
        self.schema = Schema()
        self.noreply = []

    # -- what the grammar is made of

    @property
    def token(self):
        return self.tokens[self.at]

    def next(self):
        token = self.token
        if token.kind != 'end':
            self.at += 1
        return token

    def have(self, text):
        if self.token.kind in ('word', 'mark', 'dots') and self.token.text == text:
            return self.next()
        return None

    def want(self, text):
        token = self.have(text)
        if not token:
            raise SchemaError(self.token.line, f"expected '{text}', found {self.token}")
        return token

    def word(self, what):
        if self.token.kind != 'word':
            raise SchemaError(self.token.line, f'expected {what}, found {self.token}')
        return self.next()

    def number(self, what):
        if self.token.kind != 'number':
            raise SchemaError(self.token.line, f'expected {what}, found {self.token}')
        token = self.next()
        try:
            return int(token.text, 0)
        except ValueError:      # 010: neither octal nor decimal
            raise SchemaError(token.line, f"bad number '{token.text}'") from None

    def doc(self):
        return self.next().text[1:-1] if self.token.kind == 'string' else ''

    def declared_name(self, what):
        token = self.word(f'a name for the {what}')
        check_case(token)
        if token.text in KEYWORDS:
            raise SchemaError(token.line, f"'{token.text}' is a reserved word")
        return token

    # -- the grammar

    def parse(self):
        line = self.token.line
        if not self.have('protocol'):
            raise SchemaError(line, "expected 'protocol NAME version NUMBER' first")
        self.schema.name = self.word('a name for the protocol').text
        self.want('version')
        self.schema.version = self.number('a version')
        if not 0 < self.schema.version < 1 << 32:
            raise SchemaError(line, 'version does not fit in u32, or is 0')
        while self.token.kind != 'end':
            word = self.next()
            rule = {'enum': self.names, 'flags': self.names, 'record': self.record,
                    'request': self.message, 'reply': self.message, 'event': self.message,
                    'noreply': self.no_reply}.get(word.text if word.kind == 'word' else None)
            if not rule:
                raise SchemaError(word.line, f'expected a declaration, found {word}')
            rule(word)
        return self.schema

    def names(self, word):
        name = self.declared_name(word.text)
        self.new_type(name)
        names = Names(word.text, name.text, '', word.line)
        if word.text == 'enum' and self.have('public'):
            names.public = self.word('a public header').text
        names.doc = self.doc()
        self.want('{')
        while not self.have('}'):
            value = self.word('a value')
            check_case(value)
            if names.kind == 'flags' and value.text == 'mask':
                raise SchemaError(value.line, "'mask' is a reserved word")
            self.want('=')
            number = self.number('a number')
            self.check_value(names, value, number)
            names.values.append(Value(value.text, number, self.doc(), value.line))
        if not names.values:
            raise SchemaError(word.line, f"{names.kind} '{names.name}' is empty")
        self.schema.names[names.name] = names

    @staticmethod
    def check_value(names, value, number):
        where = f"{names.kind} '{names.name}'"
        for other in names.values:
            if other.name == value.text:
                raise SchemaError(value.line, f"{where}: '{value.text}' is there twice")
            if other.number == number:
                raise SchemaError(value.line, f"{where}: '{value.text}' has the value of "
                                              f"'{other.name}'")
        if names.kind == 'enum' and not 0 <= number < 1 << 32:
            raise SchemaError(value.line, f"{where}: '{value.text}' does not fit in u32")
        if names.kind == 'flags' and (not 0 < number < 1 << 64 or number & (number - 1)):
            raise SchemaError(value.line, f"{where}: '{value.text}' is not one bit of 64")

    def record(self, word):
        name = self.declared_name('record')
        self.new_type(name)
        record = Record('record', name.text, word.line)
        record.doc = self.doc()
        self.body(record)
        if record.tail:
            raise SchemaError(record.tail.line, 'only a message has a tail')
        if not record.fields:
            raise SchemaError(word.line, f"record '{record.name}' is empty")
        self.schema.records[record.name] = record

    def message(self, word):
        name = self.word(f'a name for the {word.text}')
        check_case(name)
        message = Record(word.text, name.text, word.line)
        if self.have('='):
            message.opcode = self.number('an opcode')
            message.own_opcode = message.kind == 'reply'
        if self.have('fds'):
            least = most = self.number('a number of fds')
            if self.have('..'):
                most = self.number('a number of fds')
            if not 0 <= least <= most <= MAX_FDS:
                raise SchemaError(word.line, f"bad number of fds: 0..{MAX_FDS} are possible")
            message.fds = (least, most)
        message.doc = self.doc()
        self.opcode(message)
        self.body(message)
        self.schema.messages.append(message)

    def opcode(self, message):
        where = f"{message.kind} '{message.name}'"
        for other in self.schema.messages:
            if other.struct == message.struct:
                raise SchemaError(message.line, f"{where} is there twice: see line {other.line}")
        if message.kind == 'reply' and message.opcode is None:
            for other in self.schema.messages:
                if other.kind == 'request' and other.name == message.name:
                    message.opcode = other.opcode | REPLY
                    break
            else:
                raise SchemaError(message.line, f'{where} has no request before it')
        if message.opcode is None:
            raise SchemaError(message.line, f'{where} has no opcode')
        low, high = {'request': (1, EVENT - 1), 'event': (EVENT + 1, REPLY - 1),
                     'reply': (REPLY, REPLY + EVENT - 1)}[message.kind]
        if not low <= message.opcode <= high:
            raise SchemaError(message.line, f'{where}: opcode {message.opcode:#x} is outside '
                                            f'{low:#x}..{high:#x}')
        for other in self.schema.messages:
            if other.opcode == message.opcode:
                raise SchemaError(message.line, f"{where}: opcode {message.opcode:#x} is taken by "
                                                f"{other.kind} '{other.name}'")

    def no_reply(self, word):
        name = self.word('a request')
        for message in self.schema.messages:
            if message.kind == 'request' and message.name == name.text:
                if not message.answered:
                    raise SchemaError(word.line, f"noreply '{name.text}' is there twice")
                message.answered = False
                return
        raise SchemaError(word.line, f"noreply '{name.text}': there is no such request before it")

    def new_type(self, name):
        other = self.schema.names.get(name.text) or self.schema.records.get(name.text)
        if other:
            raise SchemaError(name.line, f"'{name.text}' is there twice: see line {other.line}")

    # -- fields

    def body(self, record):
        self.want('{')
        while True:
            end = self.have('}')
            if end:
                return
            if self.token.kind == 'end':
                raise SchemaError(self.token.line, f"expected '}}', found {self.token}")
            if record.tail:
                raise SchemaError(self.token.line, f"'{record.tail.name}' is a tail, which must "
                                                   'be last')
            field = self.field()
            for name in filter(None, (field.name, field.length_name)):
                self.check_field_name(record, field, name)
            if field.length_name == field.name:
                raise SchemaError(field.line, f"field '{field.name}' is there twice")
            self.want(';')
            if field.kind == 'tail':
                record.tail = field
            else:
                record.fields.append(field)

    @staticmethod
    def check_field_name(record, field, name):
        taken = [n for f in record.fields for n in (f.name, f.length_name)]
        if name in taken:
            raise SchemaError(field.line, f"field '{name}' is there twice")
        if name in C_WORDS or name == 'header' or re.fullmatch('reserved_[0-9]+', name):
            raise SchemaError(field.line, f"'{name}' cannot name a field")

    def field(self):
        word = self.word('a field')
        if word.text == 'tail':
            return self.tail(word)
        if word.text == 'range':
            return self.range(word)
        if word.text == 'char':
            return self.text(word)
        if word.text in ('enum', 'flags'):
            names = self.word(f'a type of {word.text}')
            field = Field(word.text, self.field_name().text, word.line)
            field.names = names.text
            field.size = field.alignment = 4 if word.text == 'enum' else 8
            known = self.schema.names.get(names.text)
            if not known or known.kind != word.text:
                raise SchemaError(names.line, f"unknown {word.text} '{names.text}'")
            field.names = known
            return field
        if word.text in SCALARS:
            name = self.field_name()
            field = Field('pad' if name.text == 'pad' else 'scalar', name.text, word.line)
            field.type = word.text
            field.size = field.alignment = SCALARS[word.text][1]
            return field
        if word.text in self.schema.records:
            raise SchemaError(word.line, f"record '{word.text}' can only be in a tail")
        raise SchemaError(word.line, f"unknown type '{word.text}'")

    def field_name(self):
        name = self.word('a name for the field')
        check_case(name)
        return name

    def text(self, word):
        self.want('[')
        size = self.number('a size')
        self.want(']')
        field = Field('text', self.field_name().text, word.line)
        if not 2 <= size <= 4096:
            raise SchemaError(word.line, f"text '{field.name}': size is outside 2..4096")
        field.size = size
        return field

    def range(self, word):
        field = Field('range', self.field_name().text, word.line)
        field.length_name = self.field_name().text
        field.size, field.alignment = 16, 8
        self.want('align')
        field.range_align = self.number('an alignment')
        if field.range_align < 1 or field.range_align & (field.range_align - 1):
            raise SchemaError(word.line, f"range '{field.name}': alignment is no power of two")
        if self.have('max'):
            field.range_max = self.number('a length')
            if not 0 < field.range_max <= VA_END or field.range_max % field.range_align:
                raise SchemaError(word.line, f"range '{field.name}': max is no multiple of the "
                                             'alignment, or outside the address space')
        return field

    def tail(self, word):
        kind = self.word('a type')
        field = Field('tail', self.field_name().text, word.line)
        field.count = self.word('the field that counts it').text
        field.type = kind.text
        if kind.text not in SCALARS and kind.text not in self.schema.records:
            raise SchemaError(kind.line, f"unknown type '{kind.text}'")
        return field


def check_case(token):
    if not re.fullmatch('[a-z][a-z0-9_]*', token.text):
        raise SchemaError(token.line, f"'{token.text}': names are lower case")


# ---- layout -------------------------------------------------------------------

def padding(offset, size):
    field = Field('pad', f'reserved_{offset}', 0)
    field.offset, field.size = offset, size
    return field


def lay_out(record):
    """Natural alignment. A hole becomes a named field, so that it is checked to be zero."""
    at, fields = record.base, []
    for field in record.fields:
        hole = -at % field.alignment
        if hole:
            fields.append(padding(at, hole))
        field.offset = at + hole
        at = field.offset + field.size
        fields.append(field)
    if at % 8:
        fields.append(padding(at, -at % 8))
    record.fields = fields
    record.size = at + -at % 8
    limit = 4096 if record.kind == 'record' else WIRE_MAX
    if record.size > limit:
        raise SchemaError(record.line, f"{record.kind} '{record.name}' is too large: "
                                       f'{record.size} bytes of {limit}')


def resolve(schema):
    """What only the whole schema can tell."""
    for record in [*schema.records.values(), *schema.messages]:
        lay_out(record)
    for message in schema.messages:
        tail = message.tail
        if not tail:
            continue
        counts = [f for f in message.fields if f.name == tail.count]
        if not counts:
            raise SchemaError(tail.line, f"tail '{tail.name}': there is no field '{tail.count}' "
                                         'that counts it')
        if counts[0].kind != 'scalar' or counts[0].type != 'u32':
            raise SchemaError(tail.line, f"tail '{tail.name}': '{tail.count}' is not u32")
        tail.size = schema.records[tail.type].size if tail.type in schema.records \
            else SCALARS[tail.type][1]
        if message.size + tail.size > WIRE_MAX:
            raise SchemaError(message.line, f"{message.kind} '{message.name}' is too large: one "
                                            'element does not fit')
        tail.count_offset = counts[0].offset
    constants = {}
    for names in schema.names.values():
        for value in names.values:
            constant = names.constant(value)
            if constant in constants:
                raise SchemaError(value.line, f'{constant} is there twice: see line '
                                              f'{constants[constant]}')
            constants[constant] = value.line
    replies = {m.name: m for m in schema.messages if m.kind == 'reply' and not m.own_opcode}
    for message in schema.messages:
        if message.kind != 'request':
            continue
        if message.answered and message.name not in replies:
            raise SchemaError(message.line, f"request '{message.name}' has no reply; if it needs "
                                            f"none, say 'noreply {message.name}'")
        if not message.answered and message.name in replies:
            raise SchemaError(replies[message.name].line, f"request '{message.name}' is noreply "
                                                          'and has a reply')


# ---- C ------------------------------------------------------------------------

BANNER = 'Generated by scanner.py from protocol.hmm: change that instead.'


def c_string(text):
    return '"' + text.replace('\\', '\\\\') + '"'


def c_comment(doc, tabs='\t'):
    return f'{tabs}/* {doc.replace("*/", "* /")} */' if doc else ''


def c_field(field):
    if field.kind in ('scalar', 'pad') and field.type:
        return f'{SCALARS[field.type][0]} {field.name};'
    if field.kind == 'pad':
        return f'uint8_t {field.name}[{field.size}];'
    if field.kind == 'enum':
        return f'uint32_t {field.name};\t/* enum hmm_{field.names.name} */'
    if field.kind == 'flags':
        return f'uint64_t {field.name};\t/* {field.names.prefix}_* */'
    if field.kind == 'text':
        return f'char {field.name}[{field.size}];'
    return f'uint64_t {field.name}, {field.length_name};'


def c_enum(names):
    lines = [f'enum hmm_{names.name} {{']
    lines += [f'\t{names.constant(v)} = {v.number},' + c_comment(v.doc) for v in names.values]
    lines.append('};')
    if names.public:
        # What <hmm/...> has already said in its own words stays; macros may repeat its constants.
        lines = [f'#ifndef HMM_{names.public.upper()}_H', *lines, '#else',
                 *(f'#define {names.constant(v)}\t{v.number}' for v in names.values), '#endif']
    return lines


def c_flags(names):
    mask = sum(v.number for v in names.values)
    lines = [f'#define {names.constant(v)}\tUINT64_C({v.number:#x})' + c_comment(v.doc)
             for v in names.values]
    return [*lines, f'#define {names.prefix}_MASK\tUINT64_C({mask:#x})']


def c_names(names):
    lines = [c_comment(names.doc, '')] if names.doc else []
    lines += c_enum(names) if names.kind == 'enum' else c_flags(names)
    return [*lines, f'extern const struct hmm_value_name hmm_{names.name}_names[];',
            f'static inline const char *hmm_{names.name}_name(uint64_t value)',
            '{', f'\treturn hmm_value_name(hmm_{names.name}_names, value);', '}', '']


def c_struct(record, schema):
    lines = [c_comment(record.doc, '')] if record.doc else []
    lines.append(f'struct {record.struct} {{')
    if record.kind != 'record':
        lines.append('\tstruct hmm_wire_header header;')
    lines += ['\t' + c_field(f) for f in record.fields]
    tail = record.tail
    if tail:
        kind = f'struct {schema.records[tail.type].struct}' if tail.type in schema.records \
            else SCALARS[tail.type][0]
        lines.append(f'\t{kind} {tail.name}[];\t/* {tail.count} of them */')
    lines.append('};')
    lines.append(f'_Static_assert(sizeof(struct {record.struct}) == {record.size}, '
                 f'"{record.struct}");')
    places = [(f.name, f.offset) for f in record.fields]
    places += [(f.length_name, f.offset + 8) for f in record.fields if f.kind == 'range']
    places += [(tail.name, record.size)] if tail else []
    lines += [f'_Static_assert(offsetof(struct {record.struct}, {name}) == {offset}, '
              f'"{record.struct}.{name}");' for name, offset in places]
    return lines + ['']


def header_file(schema):
    lines = ['/* SPDX-License-Identifier: LGPL-2.1-or-later */', f'/* {BANNER} */',
             '#ifndef HMM_PROTOCOL_H', '#define HMM_PROTOCOL_H', '', '#include "wire.h"', '',
             f'#define HMM_PROTOCOL_VERSION\t{schema.version}', '']
    for names in schema.names.values():
        lines += c_names(names)
    lines.append('enum hmm_opcode {')
    lines += [f'\t{m.constant} = {m.opcode:#x},' for m in schema.messages]
    lines += ['};', '']
    for record in [*schema.records.values(), *schema.messages]:
        lines += c_struct(record, schema)
    lines += ['#endif', '']
    return '\n'.join(lines)


KINDS = {'pad': 'HMM_WIRE_PAD', 'enum': 'HMM_WIRE_ENUM', 'flags': 'HMM_WIRE_FLAGS',
         'text': 'HMM_WIRE_TEXT', 'range': 'HMM_WIRE_RANGE'}


def c_description(field):
    kind = KINDS.get(field.kind) or \
        ('HMM_WIRE_SIGNED' if field.type[0] == 'i' else 'HMM_WIRE_UNSIGNED')
    parts = [f'.name = "{field.name}"', f'.kind = {kind}', f'.offset = {field.offset}',
             f'.size = {field.size}']
    if field.names:
        parts.append(f'.names = hmm_{field.names.name}_names')
    if field.kind == 'range':
        parts += [f'.length_name = "{field.length_name}"', f'.align = {field.range_align}',
                  f'.max = UINT64_C({field.range_max})']
    return '\t{ ' + ', '.join(parts) + ' },'


def c_message(message, schema):
    answered = message.kind == 'request' and message.answered or \
        message.kind == 'reply' and not message.own_opcode
    lines = [f'\t{{ .name = "{message.spoken}", .doc = {c_string(message.doc)},',
             f'\t  .opcode = {message.constant}, .size = {message.size},',
             f'\t  .fds_min = {message.fds[0]}, .fds_max = {message.fds[1]},',
             f'\t  .from = HMM_WIRE_{"CLIENT" if message.kind == "request" else "SERVER"},',
             f'\t  .serial = {str(answered).lower()},',
             f'\t  .any_serial = {str(not answered and message.kind != "event").lower()},']
    if message.fields:
        lines.append(f'\t  .fields = {message.struct}_fields, '
                     f'.field_count = {len(message.fields)},')
    tail = message.tail
    if tail:
        lines.append(f'\t  .tail_name = "{tail.name}", .tail_size = {tail.size}, '
                     f'.tail_count_offset = {tail.count_offset},')
    if tail and tail.type in schema.records:
        record = schema.records[tail.type]
        lines.append(f'\t  .tail_fields = {record.struct}_fields, '
                     f'.tail_field_count = {len(record.fields)},')
    lines.append('\t},')
    return lines


def code_file(schema):
    lines = ['// SPDX-License-Identifier: LGPL-2.1-or-later', f'/* {BANNER} */',
             '#include "hmm_protocol.h"', '']
    for names in schema.names.values():
        lines.append(f'const struct hmm_value_name hmm_{names.name}_names[] = {{')
        lines += [f'\t{{ {names.constant(v)}, "{v.name}", {c_string(v.doc)} }},'
                  for v in names.values]
        lines += ['\t{ 0, NULL, NULL }', '};', '']
    used = {m.tail.type for m in schema.messages if m.tail}
    for record in [*schema.records.values(), *schema.messages]:
        if not record.fields or record.kind == 'record' and record.name not in used:
            continue
        lines.append(f'static const struct hmm_wire_field {record.struct}_fields[] = {{')
        lines += [c_description(f) for f in record.fields]
        lines += ['};', '']
    # Sorted: hmm_wire_message() searches by halving.
    lines.append('const struct hmm_wire_message hmm_wire_messages[] = {')
    for message in sorted(schema.messages, key=lambda m: m.opcode):
        lines += c_message(message, schema)
    lines += ['};', f'const size_t hmm_wire_message_count = {len(schema.messages)};', '']
    return '\n'.join(lines)


# ---- manual -------------------------------------------------------------------

def type_in_words(field):
    if field.kind == 'enum':
        return f'enum [{field.names.name}](#{field.names.kind}-{field.names.name})'
    if field.kind == 'flags':
        return f'flags [{field.names.name}](#{field.names.kind}-{field.names.name})'
    if field.kind == 'text':
        return f'text, {field.size} bytes'
    if field.kind == 'range':
        most = f', at most {field.range_max} bytes' if field.range_max else ''
        return f'range, aligned to {field.range_align}{most}'
    if field.kind == 'pad':
        return f'{field.size} bytes of zero'
    return field.type


def manual_fields(record, schema):
    lines = ['', '| offset | size | field | type |', '|---|---|---|---|']
    for f in record.fields:
        name = f'{f.name}, {f.length_name}' if f.kind == 'range' else f.name
        lines.append(f'| {f.offset} | {f.size} | {name} | {type_in_words(f)} |')
    tail = record.tail
    if tail:
        kind = f'record [{tail.type}](#record-{tail.type})' if tail.type in schema.records \
            else tail.type
        lines.append(f'| {record.size} | {tail.count} x {tail.size} | {tail.name} | {kind} |')
    return lines if record.fields or tail else ['', 'Only the header.']


def manual_message(message, schema):
    title = 'reply' if message.kind == 'reply' else message.kind
    lines = [f'### {title} {message.name}', '', f'Opcode {message.opcode:#06x}. {message.doc}']
    lines[-1] = lines[-1].rstrip()
    least, most = message.fds
    if most:
        count = str(least) if least == most else f'{least} to {most}'
        lines.append(f'Descriptors: {count}.')
    if message.kind == 'request' and not message.answered:
        lines.append('Not answered.')
    return lines + manual_fields(message, schema) + ['']


def manual_file(schema):
    lines = [
        f'# The {schema.name}d protocol, version {schema.version}', '', BANNER, '',
        'One message is one `SOCK_SEQPACKET` datagram: the header, a fixed part, then at most one',
        'array. Numbers are little-endian and naturally aligned; what is padding must be zero.',
        f'A message has at most {WIRE_MAX} bytes and {MAX_FDS} descriptors (`SCM_RIGHTS`).', '',
        '| offset | size | header | |', '|---|---|---|---|',
        '| 0 | 4 | size | of the whole message |', '| 4 | 2 | opcode | |',
        '| 6 | 2 | nfds | descriptors that travel with it |',
        '| 8 | 4 | serial | not 0 in a request; its reply repeats it; 0 in an event |',
        '| 12 | 4 | reserved | 0 |', '',
        f'A reply has its request\'s opcode and {REPLY:#x}; an event has {EVENT:#x}.', '',
        'A message with a wrong size, header or direction ends the connection. An unknown opcode',
        'or a bad value is answered with `error`. A value is bad when an enum does not list it, a',
        'flag has no name, a padding is not zero, a text is not printable ASCII followed by zeros (one',
        'at least), the number of descriptors is not the stated one, or a range is unaligned,',
        'empty, too long, wraps, or ends above 2^47.', '', '## Messages', '']
    for kind in ('request', 'event'):
        for message in schema.messages:
            if message.kind == kind:
                lines += manual_message(message, schema)
                lines += [line for m in schema.messages if m.kind == 'reply' and not m.own_opcode
                          and kind == 'request' and m.name == message.name
                          for line in manual_message(m, schema)]
    for message in schema.messages:
        if message.own_opcode:
            lines += manual_message(message, schema)
    lines += ['## Records', '']
    for record in schema.records.values():
        lines += [f'### record {record.name}', '', record.doc, f'{record.size} bytes.']
        lines += manual_fields(record, schema) + ['']
    lines += ['## Enumerations and flags', '']
    for names in schema.names.values():
        lines += [f'### {names.kind} {names.name}', '', names.doc, '', '| value | name | |',
                  '|---|---|---|']
        lines += [f'| {v.number:#x} | {v.name} | {v.doc} |' if names.kind == 'flags' else
                  f'| {v.number} | {v.name} | {v.doc} |' for v in names.values]
        lines.append('')
    return re.sub('\n{3,}', '\n\n', '\n'.join(lines))


# ---- fuzz dictionary ------------------------------------------------------------

def dictionary_file(schema):
    """libFuzzer and AFL: a whole empty message per opcode, then the values that matter."""
    def entry(name, data):
        return f'{name}="' + ''.join(f'\\x{b:02x}' for b in data) + '"'

    lines = [f'# {BANNER}']
    for m in schema.messages:
        serial = 0 if m.kind == 'event' else 1
        head = struct.pack('<IHHII', m.size, m.opcode, m.fds[0], serial, 0)
        lines.append(entry(f'header_{m.kind}_{m.name}', head))
        lines.append(entry(f'opcode_{m.kind}_{m.name}', struct.pack('<H', m.opcode)))
    for names in schema.names.values():
        form = '<I' if names.kind == 'enum' else '<Q'
        lines += [entry(f'{names.name}_{v.name}', struct.pack(form, v.number))
                  for v in names.values]
    for name, value in [('va_end', VA_END), ('page', 4096), ('block', 1 << 21),
                        ('last_page', (1 << 64) - 4096), ('sign', 1 << 63), ('ones', (1 << 64) - 1)]:
        lines.append(entry(name, struct.pack('<Q', value)))
    return '\n'.join(lines) + '\n'


# ---- fuzz corpus ----------------------------------------------------------------

def simplest(record):
    """The bytes of a record or message in which each value is the first that is allowed."""
    data = bytearray(record.size)
    for f in record.fields:
        if f.kind == 'enum':
            struct.pack_into('<I', data, f.offset, f.names.values[0].number)
        elif f.kind == 'range':
            struct.pack_into('<QQ', data, f.offset, 0, f.range_align)
        elif f.kind == 'text':
            data[f.offset] = ord('x')
    return data


def corpus_files(schema):
    """One valid message per opcode: the sender (0: client), the number of fds, the bytes."""
    files = {}
    for m in schema.messages:
        data = simplest(m)
        if m.tail:
            struct.pack_into('<I', data, m.tail.count_offset, 1)
            data += simplest(schema.records[m.tail.type]) if m.tail.type in schema.records \
                else bytes(m.tail.size)
        struct.pack_into('<IHHII', data, 0, len(data), m.opcode, m.fds[0], m.kind != 'event', 0)
        files[f'corpus/{m.long_name}'] = bytes([m.kind != 'request', m.fds[0]]) + data
    return files


# ---- command line -----------------------------------------------------------------

def scan(text):
    schema = Parser(text).parse()
    resolve(schema)
    return {'hmm_protocol.h': header_file(schema), 'hmm_protocol.c': code_file(schema),
            'PROTOCOL.md': manual_file(schema), 'wire.dict': dictionary_file(schema),
            **corpus_files(schema)}


def write_changed(path, content):
    if isinstance(content, str):
        content = content.encode()
    try:
        with open(path, 'rb') as file:
            if file.read() == content:
                return
    except FileNotFoundError:
        pass
    with open(path + '.new', 'wb') as file:
        file.write(content)
    os.replace(path + '.new', path)


def main(words=None):
    parser = argparse.ArgumentParser(description='Generate the hmmd protocol from its schema.')
    parser.add_argument('schema')
    parser.add_argument('--out', required=True, metavar='DIR')
    arguments = parser.parse_args(words)
    try:
        with open(arguments.schema, encoding='utf-8') as file:
            files = scan(file.read())
    except SchemaError as error:
        print(f'{arguments.schema}:{error.line}: {error}', file=sys.stderr)
        return 1
    except (OSError, UnicodeDecodeError) as error:
        print(f'{arguments.schema}: {error}', file=sys.stderr)
        return 1
    os.makedirs(os.path.join(arguments.out, 'corpus'), exist_ok=True)
    for name, content in files.items():
        write_changed(os.path.join(arguments.out, name), content)
    return 0


if __name__ == '__main__':
    sys.exit(main())
