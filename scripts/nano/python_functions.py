"""Short Python functions nano can write: (what it does, name, code)."""

FUNCTIONS = (
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
