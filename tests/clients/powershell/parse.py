"""share/Baton.psm1 and the PowerShell in docs/mutexes.md are PowerShell, by a grammar of the language.
It runs nothing. Called in the repository's root."""

import pathlib
import re
import unittest

import tree_sitter
import tree_sitter_pwsh

PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_pwsh.language()))
MODULE = pathlib.Path("share/Baton.psm1").read_text()
FRAGMENT = re.compile(r"^```powershell\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def mistakes(text):
    """The lines, from 1, where the text is no PowerShell."""
    found, nodes = [], [PARSER.parse(text.encode()).root_node]
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            found.append(node.start_point.row + 1)
        nodes.extend(node.children)
    return sorted(found)


class Parse(unittest.TestCase):
    def test_the_module(self):
        self.assertEqual(mistakes(MODULE), [])

    def test_what_the_documentation_shows(self):
        fragments = FRAGMENT.findall(pathlib.Path("docs/mutexes.md").read_text())
        self.assertEqual(len(fragments), 4)
        for fragment in fragments:
            self.assertEqual(mistakes(fragment), [], fragment)

    def test_a_mistake_is_found(self):
        for right, wrong in [
            ("if ($Shared) {", "if $Shared {"),
            ("} catch {", "catch {"),
            ("+= '--shared'", "+= += '--shared'"),
            ("\n}\n\nfunction Unlock", "\n\nfunction Unlock"),
        ]:
            self.assertIn(right, MODULE)
            self.assertNotEqual(mistakes(MODULE.replace(right, wrong)), [], wrong)


unittest.main()
