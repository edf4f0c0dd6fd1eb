// LiteLLM's dashboard on litespend, in a browser: what its pages show is what the API says, and nothing on them fails.
// Run by `./dev test-ui`, and by scripts/follow.py with --visit; usage:
//   node dashboard.mjs TARGET_DIRECTORY [--shapes FILE] [--visit FILE]
// --shapes answers what the server does not know from a newer data/dashboard_shapes.json than the server was built with.
// --visit opens every page and tab instead of testing, and writes the requests that they make to FILE.
// LITESPEND_BIN is the server, if not TARGET_DIRECTORY/debug/litespend; LITELLM_UI_PATH is the export of the dashboard.

import { execFileSync, spawn } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { chromium } from 'playwright-core'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { shapes: { type: 'string' }, visit: { type: 'string' } },
})
const target = resolve(positionals[0] ?? 'target')
const litespend = process.env.LITESPEND_BIN ?? join(target, 'debug/litespend')
const screenshots = join(target, 'ui')
const masterKey = 'sk-ui-test-master-key'
mkdirSync(screenshots, { recursive: true })

const home = mkdtempSync('/tmp/litespend-ui-')
chmodSync(home, 0o755)
const data = join(home, 'data')
const environment = { ...process.env, LITELLM_MASTER_KEY: masterKey, RUST_LOG: 'warn' }
// Settings of whoever runs this, which would lead to databases and archives of theirs.
const foreign = ['DATABASE_URL', 'DATABASE_URL_READ_REPLICA', 'DIRECT_URL', 'CONFIG_FILE_PATH', 'LITESPEND_ARCHIVE_URL']
for (const name of foreign) delete environment[name]
execFileSync(litespend, ['demo-data', '--data-dir', data, '--calls', '60'], { env: environment })
const server = spawn(litespend, ['serve', '--port', '0', '--data-dir', data], {
  env: environment,
  stdio: ['ignore', 'pipe', 'inherit'],
})

/** The address that the server prints. */
const address = await new Promise((resolve, reject) => {
  let said = ''
  server.stdout.on('data', piece => {
    said += piece
    const found = said.match(/listening on ([^)]+)\)/)
    if (found && said.includes('master key')) resolve(`http://${found[1]}`)
  })
  server.on('exit', code => reject(new Error(`the server ended with ${code}: ${said}`)))
})

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})
const page = await (await browser.newContext({ viewport: { width: 1440, height: 1100 } })).newPage()

/** What went wrong on the pages: failed requests of ours, and errors on the console. */
const troubles = []
page.on('response', response => {
  if (response.url().startsWith(address) && response.status() >= 400) {
    troubles.push(`${response.status()} ${response.request().method()} ${response.url()}`)
  }
})
page.on('requestfailed', request => {
  // A page that is left cancels what it asked for.
  if (request.failure()?.errorText !== 'net::ERR_ABORTED') troubles.push(`${request.failure()?.errorText} ${request.url()}`)
})
page.on('console', message => {
  // What a page that is left had asked for; a request that fails otherwise is counted as such.
  if (message.type() === 'error' && !message.text().includes('TypeError: Failed to fetch')) troubles.push(`console: ${message.text()} ${message.location().url}`)
})
page.on('pageerror', error => troubles.push(`page: ${error.message}`))

const ask = async (path, options = {}) => {
  const answer = await fetch(address + path, { ...options, headers: { Authorization: `Bearer ${masterKey}`, ...options.headers } })
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`)
  return answer.json()
}
const day = days => new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 10)
const shot = name => page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: false })
const expect = (holds, message) => {
  if (!holds) throw new Error(message)
}
const quiet = () => page.waitForLoadState('networkidle')
const go = async path => {
  await page.goto(`${address}/ui/${path}`)
  await quiet()
}

/** Whether a path pattern of the shapes, such as /team/{team_id}/members, fits a path. */
const fits = (pattern, path) => {
  const [parts, segments] = [pattern.split('/'), path.split('/')]
  return parts.length === segments.length && parts.every((part, index) => part.startsWith('{') || part === segments[index])
}

/** Whether the server has no answer for a request: it lacks the path or the method. */
const unknown = status => [404, 405, 501].includes(status)

/** Answers what the server does not know from a file of shapes, as a server does that is built with it. */
const answerFrom = async file => {
  const shapes = JSON.parse(readFileSync(file, 'utf8'))
  const shapeOf = url => Object.keys(shapes).find(pattern => fits(pattern, url.pathname))
  await page.context().route(url => url.origin === address && shapeOf(url) !== undefined, async route => {
    // A page that is left cancels what it asked for, and then there is nothing to answer any more.
    const answer = await route.fetch().catch(() => undefined)
    if (!answer) return route.abort().catch(() => {})
    const ours = route.request().method() === 'GET' && unknown(answer.status())
    const json = shapes[shapeOf(new URL(route.request().url()))]
    await route.fulfill(ours ? { json } : { response: answer }).catch(() => {})
  })
}
if (options.shapes) await answerFrom(options.shapes)

const logIn = async () => {
  await page.getByPlaceholder(/username/i).fill('admin')
  await page.getByPlaceholder(/password/i).fill(masterKey)
  await page.getByRole('button', { name: /^(login|sign in)$/i }).click()
  await page.getByText('Virtual Keys').first().waitFor()
}

const stop = async code => {
  await browser.close()
  server.removeAllListeners('exit')
  server.kill('SIGTERM')
  await new Promise(done => server.once('exit', done))
  rmSync(home, { recursive: true, force: true })
  process.exit(code)
}

/** The pages of the export, without those for people who are not logged in. */
const exportedPages = () => {
  const folder = process.env.LITELLM_UI_PATH
  const names = readdirSync(folder, { recursive: true }).filter(name => name.endsWith('index.html'))
  const pages = names.map(name => name.slice(0, -'index.html'.length)).sort()
  return pages.filter(name => !/^(404|_not-found|login|onboarding)\//.test(name))
}

/** Waits until no request has been running for half a second, for ten seconds at most: some pages never come to rest. */
const running = new Set()
page.on('request', request => running.add(request))
page.on('requestfinished', request => running.delete(request))
page.on('requestfailed', request => running.delete(request))
const settle = async () => {
  for (let calm = 0, waited = 0; calm < 5 && waited < 100; waited += 1) {
    await page.waitForTimeout(100)
    calm = running.size === 0 ? calm + 1 : 0
  }
}

/** Opens a page and each of its tabs. */
const visit = async name => {
  running.clear()
  await page.goto(`${address}/ui/${name}`)
  await page.waitForLoadState('networkidle', { timeout: 5000 }).catch(() => {})
  await settle()
  const tabs = page.getByRole('tab')
  for (let index = 0; index < await tabs.count(); index += 1) {
    await tabs.nth(index).click({ timeout: 2000 }).catch(() => {})
    await settle()
  }
}

/** Visits every page, and writes its requests: method, path, a query, the worst status, and the pages that made it. */
const visitAll = async file => {
  const found = new Map()
  let current = 'login/'
  page.on('response', response => {
    const [url, method, status] = [new URL(response.url()), response.request().method(), response.status()]
    if (url.origin !== address || !['fetch', 'xhr'].includes(response.request().resourceType())) return
    if (/^\/(ui|_next|litellm-asset-prefix)\//.test(url.pathname)) return
    const key = `${method} ${url.pathname}`
    const query = Object.fromEntries(url.searchParams)
    const entry = found.get(key) ?? { method, path: url.pathname, query, status, pages: new Set() }
    found.set(key, entry)
    if (unknown(status)) entry.status = status
    entry.pages.add(current)
  })
  await go(current)
  await logIn()
  await quiet()
  const broken = {}
  for (current of exportedPages()) {
    troubles.length = 0
    await visit(current)
    const errors = troubles.filter(line => line.startsWith('page: '))
    if (errors.length) broken[current] = [...new Set(errors)]
  }
  expect(found.get('GET /key/list')?.status === 200, 'the pages were visited without a session')
  const requests = [...found.keys()].sort().map(key => ({ ...found.get(key), pages: [...found.get(key).pages].sort() }))
  writeFileSync(file, JSON.stringify({ requests, broken }, null, 2) + '\n')
  const strangers = requests.filter(request => unknown(request.status)).length
  console.log(`${exportedPages().length} pages visited, ${strangers} unknown requests, ${Object.keys(broken).length} broken pages`)
}
if (options.visit) {
  await visitAll(options.visit)
  await stop(0)
}

const tests = {
  'a wrong password is refused': async () => {
    await go('login/')
    await page.getByPlaceholder(/username/i).fill('admin')
    await page.getByPlaceholder(/password/i).fill('sk-wrong-password')
    await page.getByRole('button', { name: /^(login|sign in)$/i }).click()
    await page.getByText(/invalid credentials/i).first().waitFor()
    await shot('wrong-password')
    // This refusal is what was asked for.
    const expected = troubles.splice(0)
    expect(expected.some(line => line.startsWith('401 POST')), `no 401: ${expected}`)
    expect(expected.every(line => line.includes('/v2/login')), `more than the login failed: ${expected}`)
  },
  'the master key logs in': async () => {
    await logIn()
    await quiet()
    await shot('front')
  },
  'Usage shows the sums of the API, with charts': async () => {
    await go('usage/')
    await page.getByText('Total Requests').filter({ visible: true }).first().waitFor()
    await page.waitForTimeout(1500)
    await shot('usage')
    const days = await ask(`/user/daily/activity?start_date=${day(7)}&end_date=${day(0)}&page_size=1000`)
    const spend = days.results.reduce((sum, result) => sum + result.metrics.spend, 0)
    const requests = days.results.reduce((sum, result) => sum + result.metrics.api_requests, 0)
    expect(requests > 100 && spend > 0, `no usage to be shown: ${requests}`)
    const text = (await page.locator('body').innerText()).replaceAll(',', '')
    expect(text.includes(`$${spend.toFixed(2)}`), `$${spend.toFixed(2)} is not on the page:\n${text.slice(0, 3000)}`)
    expect(text.includes(String(requests)), `${requests} requests are not on the page:\n${text.slice(0, 3000)}`)
    const drawn = await page.locator('svg.recharts-surface path, svg.recharts-surface rect').count()
    expect(drawn > 5, `${drawn} shapes drawn`)
  },
  'Logs lists calls, filters by key and opens one': async () => {
    await go('logs/')
    await page.locator('table tbody tr').nth(3).waitFor()
    await shot('logs')
    const keys = (await ask('/key/list?size=100&return_full_object=true')).keys
    const row = (await ask(`/spend/logs/ui?start_date=${day(1)}%2000:00:00&end_date=${day(-1)}%2000:00:00&page=1&page_size=50`)).data[0]
    const key = keys.find(key => key.token === row.api_key)
    expect(key, 'the newest call has a key')
    await page.goto(`${address}/ui/logs/?key_hash=${key.token}`)
    await quiet()
    await page.locator('table tbody tr').first().click()
    await page.waitForTimeout(1500)
    await shot('logs-row')
    const text = await page.locator('body').innerText()
    expect(/request id|metadata/i.test(text), `no row was opened:\n${text.slice(0, 2000)}`)
  },
  'Virtual Keys lists the keys': async () => {
    await go('api-keys/')
    const { keys } = await ask('/key/list?size=100&return_full_object=true')
    await page.getByText(keys[0].key_alias).first().waitFor()
    await shot('keys')
    expect(keys.length > 3 && keys.every(key => key.team_id !== 'litellm-dashboard'), 'keys of sessions are not listed')
  },
  'Teams lists the teams': async () => {
    await go('teams/')
    const { teams } = await ask('/v2/team/list?page=1&page_size=50')
    for (const team of teams) await page.getByText(team.team_alias).first().waitFor()
    await shot('teams')
  },
  'Security Settings adds and deletes an address': async () => {
    await go('admin-panel/')
    await shot('admin-panel')
    await page.getByText(/security settings/i).first().click()
    await page.getByRole('button', { name: /allowed ips/i }).click()
    await page.waitForTimeout(500)
    await shot('allowed-addresses')
    await page.getByRole('button', { name: /add ip/i }).click()
    // The list must go on to admit this test.
    await page.getByPlaceholder(/ip address/i).fill('127.0.0.1')
    await page.getByRole('button', { name: /^add ip address$/i }).last().click()
    await page.getByRole('cell', { name: '127.0.0.1' }).waitFor()
    await shot('allowed-address-added')
    expect((await ask('/get/allowed_ips')).data.includes('127.0.0.1'), 'the address is not stored')
    await page.getByRole('button', { name: /delete/i }).first().click()
    await page.waitForTimeout(300)
    await page.getByRole('button', { name: /^(yes|delete)$/i }).last().click()
    await page.waitForTimeout(1000)
    await shot('allowed-address-deleted')
    expect(!(await ask('/get/allowed_ips')).data.includes('127.0.0.1'), 'the address is still stored')
  },
}

let failed = 0
for (const [name, test] of Object.entries(tests)) {
  troubles.length = 0
  try {
    await test()
    expect(troubles.length === 0, `troubles:\n  ${troubles.join('\n  ')}`)
    console.log(`ok    ${name}`)
  } catch (error) {
    failed += 1
    await shot(`failed-${failed}`)
    console.log(`FAIL  ${name}\n${error.message}\n${troubles.join('\n')}`)
  }
}
console.log(`${Object.keys(tests).length - failed} of ${Object.keys(tests).length} passed; screenshots in ${screenshots}`)
await stop(failed ? 1 : 0)
