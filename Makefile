# Each target is one plain command, for those without make
.PHONY: prepare fresh docs axe readme readme-check dist

prepare:            ## before a commit: package, stored outputs, README
	nbdev_export
	python tools/execute.py
	python tools/nbsite.py readme

fresh:              ## run all notebooks: each must show what is stored in it
	python tools/execute.py --check

docs:               ## the site: _docs/index.html
	python tools/nbsite.py site

axe:                ## for the browser test: axe-core, in node_modules/
	npm install --no-save --no-audit --no-fund --silent axe-core@4.14.1

readme:             ## README.md, from nbs/index.ipynb
	python tools/nbsite.py readme

readme-check:
	python tools/nbsite.py readme --check

dist:               ## wheel and sdist in dist/, as PyPI takes them
	rm -rf build dist && python -m build && twine check --strict dist/*
