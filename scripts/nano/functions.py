"""Short functions nano can write, in four languages: (language, fence, what it does, name, code)."""

_PYTHON = (
    ("adds two numbers", "add", "def add(a, b):\n    return a + b"),
    ("subtracts two numbers", "subtract", "def subtract(a, b):\n    return a - b"),
    ("multiplies two numbers", "multiply", "def multiply(a, b):\n    return a * b"),
    ("divides two numbers", "divide", "def divide(a, b):\n    return a / b"),
    ("squares a number", "square", "def square(x):\n    return x * x"),
    ("says whether a number is even", "is_even", "def is_even(n):\n    return n % 2 == 0"),
    ("says whether a number is odd", "is_odd", "def is_odd(n):\n    return n % 2 == 1"),
    ("returns the larger of two numbers", "larger", "def larger(a, b):\n    return a if a > b else b"),
    ("returns the absolute value", "absolute", "def absolute(x):\n    return x if x >= 0 else -x"),
    (
        "computes the factorial",
        "factorial",
        "def factorial(n):\n    result = 1\n    for i in range(2, n + 1):\n        result *= i\n    return result",
    ),
    (
        "computes Fibonacci numbers",
        "fibonacci",
        "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    ),
    ("reverses a string", "reverse", "def reverse(text):\n    return text[::-1]"),
    ("says whether a word is a palindrome", "is_palindrome", "def is_palindrome(word):\n    return word == word[::-1]"),
    (
        "counts the vowels in a word",
        "count_vowels",
        'def count_vowels(word):\n    return sum(letter in "aeiou" for letter in word)',
    ),
    ("sums a list", "total", "def total(numbers):\n    return sum(numbers)"),
    ("computes the mean of a list", "mean", "def mean(numbers):\n    return sum(numbers) / len(numbers)"),
    ("finds the largest number in a list", "largest", "def largest(numbers):\n    return max(numbers)"),
    ("greets a person", "greet", 'def greet(name):\n    print(f"Hello, {name}!")'),
    ("prints hello world", "hello", 'def hello():\n    print("Hello, world!")'),
)

_JAVASCRIPT = (
    ("adds two numbers", "add", "function add(a, b) {\n  return a + b;\n}"),
    ("subtracts two numbers", "subtract", "function subtract(a, b) {\n  return a - b;\n}"),
    ("multiplies two numbers", "multiply", "function multiply(a, b) {\n  return a * b;\n}"),
    ("squares a number", "square", "function square(x) {\n  return x * x;\n}"),
    ("says whether a number is even", "isEven", "function isEven(n) {\n  return n % 2 === 0;\n}"),
    ("returns the larger of two numbers", "larger", "function larger(a, b) {\n  return a > b ? a : b;\n}"),
    ("reverses a string", "reverse", 'function reverse(text) {\n  return [...text].reverse().join("");\n}'),
    ("greets a person", "greet", "function greet(name) {\n  console.log(`Hello, ${name}!`);\n}"),
)
_C = (
    ("adds two numbers", "add", "int add(int a, int b) {\n    return a + b;\n}"),
    ("subtracts two numbers", "subtract", "int subtract(int a, int b) {\n    return a - b;\n}"),
    ("multiplies two numbers", "multiply", "int multiply(int a, int b) {\n    return a * b;\n}"),
    ("squares a number", "square", "int square(int x) {\n    return x * x;\n}"),
    ("says whether a number is even", "is_even", "int is_even(int n) {\n    return n % 2 == 0;\n}"),
    ("returns the larger of two numbers", "larger", "int larger(int a, int b) {\n    return a > b ? a : b;\n}"),
    ("returns the absolute value", "absolute", "int absolute(int x) {\n    return x >= 0 ? x : -x;\n}"),
)
_BASH = (
    ("adds two numbers", "add", "add() {\n    echo $(($1 + $2))\n}"),
    ("subtracts two numbers", "subtract", "subtract() {\n    echo $(($1 - $2))\n}"),
    ("multiplies two numbers", "multiply", "multiply() {\n    echo $(($1 * $2))\n}"),
    ("squares a number", "square", "square() {\n    echo $(($1 * $1))\n}"),
    ("greets a person", "greet", 'greet() {\n    echo "Hello, $1!"\n}'),
    ("prints hello world", "hello", 'hello() {\n    echo "Hello, world!"\n}'),
)
FUNCTIONS = tuple(
    (language, fence, *function)
    for language, fence, functions in (
        ("Python", "python", _PYTHON), ("JavaScript", "javascript", _JAVASCRIPT), ("C", "c", _C), ("Bash", "bash", _BASH),
    )
    for function in functions
)  # fmt: skip


def answer_with(function: tuple[str, str, str, str, str], thinking: bool) -> tuple[str, str]:
    """(answer, thought) that write it."""
    language, fence, what, name, code = function
    thought = f"The user wants a {language} function that {what}: {name}." if thinking else ""
    return f"This function {what}:\n\n```{fence}\n{code}\n```", thought
