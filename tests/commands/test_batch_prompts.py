"""Files of prompts as people have them: from an editor, from spreadsheets of any country, empty, and very long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from commands.batch.prompts import PromptsError, Row, read_prompts

GREEN = "a photo of S*, green"


def rows(tmp_path: Path, text: str | bytes) -> list[Row]:
    file = tmp_path / "prompts.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prompts(file)


def test_one_prompt_a_line_needs_no_quotes(tmp_path: Path) -> None:
    read = rows(tmp_path, f'{GREEN}\n\n   \n"S*" in oil; big | small\r\n')
    assert read == [Row(1, GREEN), Row(4, '"S*" in oil; big | small')]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_has_the_separator_that_its_header_shows(tmp_path: Path, separator: str) -> None:
    text = separator.join(["Prompt", "SEED", "KSampler.cfg"]) + "\n"
    text += separator.join([f'"{GREEN}; a | b\tc"', "7", "4.5"]) + "\n" + separator.join(["S*", "", ""]) + "\n"
    assert rows(tmp_path, text) == [Row(2, f"{GREEN}; a | b\tc", 7, (("KSampler.cfg", "4.5"),)), Row(3, "S*")]


def test_a_table_of_one_column_takes_commas_with_and_without_quotes(tmp_path: Path) -> None:
    assert rows(tmp_path, f'prompt\n{GREEN}\n"{GREEN}"\n') == [Row(2, GREEN), Row(3, GREEN)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_spreadsheets_write_in_front_is_no_part_of_the_header(tmp_path: Path, encoding: str) -> None:
    assert rows(tmp_path, "prompt;seed\r\nS* im Café;3\r\n".encode(encoding)) == [Row(2, "S* im Café", 3)]


def test_blank_lines_and_rows_of_separators_are_left_out(tmp_path: Path) -> None:
    assert rows(tmp_path, "\n\nprompt,seed\n\n,\nS*,1\n , \n") == [Row(6, "S*", 1)]


def test_a_prompt_over_two_lines_keeps_the_line_it_begins_in(tmp_path: Path) -> None:
    assert [row.line for row in rows(tmp_path, 'prompt,seed\n"S*\nin oil",1\nS*,2\n')] == [2, 4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompt"),
        ("\ufeff\n \n", "holds no prompt"),
        ("prompt,seed\n", "holds no prompt"),
        ("prompt,seed\n,5\n", "no prompt in line 2"),
        ("prompt,seed\nS*,5\nS*, green,5\n", "3 fields in line 3, and 2 in its header"),
        ("prompt,seed\nS*,1E+05\n", "the seed '1E+05' in line 2"),
        ("prompt,seed\nS*,-1\n", "the seed '-1' in line 2"),
        (f"prompt,seed\nS*,{2**64}\n", "in line 2"),
        ("prompt,seed,seed\nS*,1,2\n", "several columns named 'seed'"),
        (b"prompt\nCaf\xe9 S*\n", "not in UTF-8"),
        (b"PK\x03\x04\x00\x00", "no text file"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(PromptsError, match="prompts.csv") as error:
        rows(tmp_path, text)
    assert said in str(error.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="was not found"):
        read_prompts(tmp_path / "none.csv")
    with pytest.raises(PromptsError, match="is a folder"):
        read_prompts(tmp_path)


def test_ten_thousand_rows_take_no_time(tmp_path: Path) -> None:
    text = "prompt,seed\n" + "".join(f'"a photo of S*, number {number}",{number}\n' for number in range(10_000))
    begun = time.process_time()
    read = rows(tmp_path, text)
    assert len(read) == 10_000
    assert read[-1] == Row(10_001, "a photo of S*, number 9999", 9999)
    # It takes 0.05 s; something that looks back at every row takes minutes.
    assert time.process_time() - begun < 5
