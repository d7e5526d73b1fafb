// Validates documents with ajv in its strict mode: `node validate.js AJV SCHEMA DOCUMENTS` prints the errors of each, as JSON.
const [, , ajv, schemaFile, documentsFile] = process.argv;
const fs = require("fs");
const Ajv = require(ajv);
const addFormats = require(ajv + "-formats");

const validator = new Ajv({ strict: true, allErrors: true, allowUnionTypes: true });
addFormats(validator);
const validate = validator.compile(JSON.parse(fs.readFileSync(schemaFile, "utf8")));
const told = {};
for (const [name, document] of Object.entries(JSON.parse(fs.readFileSync(documentsFile, "utf8")))) {
  told[name] = validate(document) ? [] : validate.errors.map((error) => `${error.instancePath} ${error.message}`);
}
console.log(JSON.stringify(told));
